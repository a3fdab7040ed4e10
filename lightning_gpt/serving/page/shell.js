// What surrounds the conversation: theme, drawers, the list of conversations.

import { element, icon } from "./dom.js";
import { saveTheme } from "./store.js";

const root = document.documentElement;
const themeButton = document.getElementById("theme");
const THEMES = ["auto", "light", "dark"];
const narrow = matchMedia("(max-width: 60rem)");

function showTheme() {
  const theme = root.dataset.theme;
  themeButton.querySelector("use").setAttribute("href", `#i-${theme}`);
  themeButton.setAttribute("aria-label", `Theme: ${theme}`);
  themeButton.title = `Theme: ${theme}`;
}

const DRAWERS = { side: "show-side", settings: "show-settings" };

export function openDrawer(name, open = true) {
  document.body.classList.toggle(`${name}-open`, open);
  document.getElementById(DRAWERS[name]).setAttribute("aria-expanded", String(open));
  if (open && narrow.matches) document.getElementById(name).querySelector("button, textarea").focus();
}

const isOpen = (name) => document.body.classList.contains(`${name}-open`);

// Whether there was something to close: on small screens drawers lie over the conversation.
export function closeDrawers() {
  const open = Object.keys(DRAWERS).filter(isOpen);
  if (!narrow.matches || !open.length) return false;
  for (const name of open) openDrawer(name, false);
  document.getElementById(DRAWERS[open[0]]).focus();
  return true;
}

export function startShell() {
  themeButton.addEventListener("click", () => {
    root.dataset.theme = THEMES[(THEMES.indexOf(root.dataset.theme) + 1) % THEMES.length];
    saveTheme(root.dataset.theme);
    showTheme();
  });
  showTheme();
  for (const [name, button] of Object.entries(DRAWERS)) {
    document.getElementById(button).addEventListener("click", () => openDrawer(name, !isOpen(name)));
    openDrawer(name, !narrow.matches && (name === "side" || innerWidth >= 1200));
  }
  document.getElementById("hide-settings").addEventListener("click", () => {
    openDrawer("settings", false);
    document.getElementById("show-settings").focus();
  });
  document.getElementById("veil").addEventListener("click", closeDrawers);
  narrow.addEventListener("change", () => {
    openDrawer("side", !narrow.matches);
    openDrawer("settings", false);
  });
  if (/Mac|iP/.test(navigator.platform)) document.getElementById("new-key").textContent = "⌘ K";
}

export function listConversations(conversations, current, { open, remove }) {
  const items = conversations
    .filter((one) => one.messages.length)
    .map((one) =>
      element(
        "li",
        {},
        element(
          "button",
          { type: "button", class: "row", "aria-current": one === current ? "true" : false, onclick: () => open(one) },
          element("span", {}, one.title),
        ),
        element(
          "button",
          { type: "button", class: "quiet", "aria-label": `Delete ${one.title}`, onclick: () => remove(one) },
          icon("close"),
        ),
      ),
    );
  document.getElementById("conversations").replaceChildren(...items);
}
