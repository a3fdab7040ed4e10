// The sampling controls: what they show, what is kept, and what they put into a request.

import { loadSettings, saveSettings } from "./store.js";

const form = document.getElementById("controls");
const NUMBERS = ["temperature", "top_p", "top_k", "max_tokens", "seed", "frequency_penalty", "presence_penalty"];
const NEUTRAL = { top_p: 1, frequency_penalty: 0, presence_penalty: 0 };
const MOST_STOPS = 4;

const fields = [...form.elements].filter((field) => field.name);

function show() {
  for (const field of fields) {
    const output = field.parentElement.querySelector("output");
    if (output) output.textContent = Number(field.value).toFixed(field.step === "0.1" ? 1 : 2);
  }
}

// A number within its range, null for an empty field.
function numberOf(field) {
  if (field.value.trim() === "" || !Number.isFinite(Number(field.value))) return null;
  const number = Math.min(Math.max(Number(field.value), Number(field.min)), Number(field.max));
  return field.step === "1" ? Math.round(number) : number;
}

function save() {
  const values = fields.map((field) => [field.name, field.type === "checkbox" ? field.checked : field.value]);
  saveSettings(Object.fromEntries(values));
}

// onchange is called when the shading of tokens is switched.
export function startSettings(onchange) {
  const kept = loadSettings();
  for (const field of fields) {
    if (!(field.name in kept)) continue;
    if (field.type === "checkbox") field.checked = kept[field.name] === true;
    else field.value = kept[field.name];
  }
  form.addEventListener("input", () => {
    show();
    save();
  });
  form.addEventListener("change", ({ target }) => {
    if (target.type === "number") target.value = numberOf(target) ?? target.defaultValue;
    if (target.name === "confidence") onchange();
    save();
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  document.getElementById("reset").addEventListener("click", () => {
    for (const field of fields) {
      if (NUMBERS.includes(field.name) || field.name === "stop") field.value = field.defaultValue;
    }
    show();
    save();
  });
  show();
}

export const confidenceWanted = () => form.elements.confidence.checked;
export const systemPrompt = () => form.elements.system.value;

// Question and answer share what the model reads: on a small one the answer begins with half of it.
export function limitTo(contextLength) {
  const field = form.elements.max_tokens;
  field.max = contextLength || 1_000_000;
  const most = Math.max(Math.floor(field.max / 2), 1);
  field.value = Math.min(numberOf(field) ?? field.defaultValue, most);
}

// The fields of a request; those that change nothing are left out.
export function sampling(chat) {
  const body = {};
  for (const name of NUMBERS) {
    const number = numberOf(form.elements[name]);
    if (number !== null && number !== NEUTRAL[name]) body[name] = number;
  }
  const stops = form.elements.stop.value.split("\n").filter((line) => line !== "");
  if (stops.length) body.stop = stops.slice(0, MOST_STOPS).map((line) => line.replaceAll("\\n", "\n"));
  if (confidenceWanted()) Object.assign(body, chat ? { logprobs: true, top_logprobs: 5 } : { logprobs: 5 });
  return body;
}
