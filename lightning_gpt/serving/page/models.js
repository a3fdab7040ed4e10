// The models that the service offers, and what the page says of them.

import { listModels, serviceVersion } from "./api.js";
import { element } from "./dom.js";

const select = document.getElementById("model");
const info = document.getElementById("model-info");
let models = [];

export const currentModel = () => models.find((model) => model.id === select.value) ?? null;

// 135M, 1.1B
function count(number) {
  for (const [size, letter] of [[1e12, "T"], [1e9, "B"], [1e6, "M"], [1e3, "k"]]) {
    if (number >= size) return `${Number((number / size).toPrecision(3))}${letter}`;
  }
  return String(number);
}

// "v1 90%, v2 10%"; names alone where there are no weights.
function versionsInWords(versions) {
  const list = Array.isArray(versions) ? versions : Object.entries(versions ?? {}).map(([name, weight]) => ({ name, weight }));
  const all = list.reduce((sum, version) => sum + (version.weight ?? 0), 0) || 1;
  return list
    .map((version) => {
      if (typeof version !== "object") return String(version);
      const name = version.name ?? version.id ?? version.version;
      return version.weight == null || list.length === 1 ? name : `${name} ${Math.round((100 * version.weight) / all)}%`;
    })
    .join(", ");
}

export function showModel() {
  const model = currentModel();
  const parts = [];
  if (model?.parameters) parts.push(`${count(model.parameters)} parameters`);
  if (model?.max_model_len) parts.push(`${model.max_model_len.toLocaleString("en")} tokens of context`);
  const versions = model ? versionsInWords(model.versions) : "";
  if (versions) parts.push(`version${versions.includes(",") ? "s" : ""} ${versions}`);
  if (model) parts.push(model.chat ? "chat" : "completion");
  info.textContent = info.title = parts.join(" · ");
}

// Asks the service for its models and keeps the choice where it still exists.
export async function loadModels(key, wanted) {
  models = await listModels(key);
  const chosen = select.value || wanted;
  select.replaceChildren(...models.map((model) => element("option", { value: model.id }, model.id)));
  if (models.some((model) => model.id === chosen)) select.value = chosen;
  showModel();
}

export function chooseModel(id) {
  if (models.some((model) => model.id === id)) select.value = id;
  showModel();
}

export async function showVersion() {
  try {
    document.getElementById("service-version").textContent = await serviceVersion();
  } catch {
    // an ornament: the page does without
  }
}
