// Sets the theme before the first paint, which a module would be too late for. auto = as the system says.
"use strict";
{
  let theme = "auto";
  try {
    theme = localStorage.getItem("theme") || "auto";
  } catch {
    // storage is switched off: the system decides
  }
  document.documentElement.dataset.theme = ["light", "dark"].includes(theme) ? theme : "auto";
}
