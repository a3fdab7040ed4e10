// How a conversation looks: messages, the shading of tokens, usage, failures with their countdown.

import { copyText, element, icon } from "./dom.js";
import { markdown } from "./markdown.js";

const percent = (logprob) => `${(100 * Math.exp(logprob)).toFixed(logprob > -5 ? 1 : 3)}%`;

// Tokens with a tint that grows as their probability falls; what else was likely is in the title.
function shaded(tokens) {
  const page = document.createDocumentFragment();
  for (const [text, logprob, alternatives] of tokens) {
    const doubt = Math.min(Math.floor(-(logprob ?? 0) / 0.7), 4);
    const others = alternatives.map(([other, value]) => `${JSON.stringify(other)} ${percent(value)}`);
    const title = [`${percent(logprob ?? 0)} sure`, ...others].join("\n");
    page.append(element("span", { class: `token doubt-${doubt}`, title }, text));
  }
  return page;
}

function written(message, chat, confidence) {
  const body = element("div", { class: "body" });
  if (message.role === "assistant" && confidence && message.tokens?.length) {
    body.classList.add("raw");
    body.append(shaded(message.tokens));
  } else if (message.role === "assistant" && chat) body.append(markdown(message.content));
  else {
    body.classList.add("raw");
    body.append(message.content);
  }
  return body;
}

const ENDS = { length: "cut at the longest answer", stopped: "stopped", content_filter: "filtered" };

function usageLine({ usage }) {
  if (!usage) return null;
  const parts = [`${usage.tokens} token${usage.tokens === 1 ? "" : "s"}`];
  if (usage.prompt != null) parts[0] += ` after ${usage.prompt}`;
  if (usage.ttft != null) parts.push(`first in ${usage.ttft < 1 ? `${Math.round(1000 * usage.ttft)} ms` : `${usage.ttft.toFixed(1)} s`}`);
  if (usage.rate) parts.push(`${usage.rate < 10 ? usage.rate.toFixed(1) : Math.round(usage.rate)} tokens/s`);
  if (ENDS[usage.finish]) parts.push(ENDS[usage.finish]);
  return element("span", { class: "usage" }, parts.join(" · "));
}

const HEADS = {
  0: "No connection",
  401: "The service wants a valid API key",
  403: "This key may not do that",
  404: "Not found",
  413: "That is too long",
  429: "Too many requests",
  503: "The service is busy",
  504: "It took too long",
};

function failure(problem, again) {
  const button = element("button", { type: "button", class: "link", onclick: again, hidden: !again });
  const ready = problem.readyAt ?? 0;
  const tick = () => {
    const seconds = Math.ceil((ready - Date.now()) / 1000);
    button.disabled = seconds > 0;
    button.textContent = seconds > 0 ? `Try again in ${seconds} s` : "Try again";
    if (seconds > 0) setTimeout(() => button.isConnected && tick(), 250);
  };
  const box = element(
    "div",
    { class: "failure", role: "alert" },
    element("strong", {}, HEADS[problem.status] ?? "That did not work"),
    element("p", {}, problem.message),
    element("p", { "aria-live": "off" }, button),
  );
  queueMicrotask(tick);
  return box;
}

function action(name, label, onclick) {
  return element("button", { type: "button", class: "quiet", "aria-label": label, title: label, onclick }, icon(name));
}

// One message. does = {regenerate, edit}, given where the message is the last of its kind.
export function messageArticle(message, { chat, confidence, does }) {
  const mine = message.role === "user";
  const article = element("article", {
    class: mine ? "mine" : "theirs",
    "aria-label": mine ? "You" : "Model",
    "aria-busy": message.live ? "true" : false,
  });
  article.append(written(message, chat, confidence));
  if (message.live && !message.content) article.classList.add("thinking");
  if (message.problem) article.append(failure(message.problem, does.regenerate));
  if (!message.live && chat) {
    const foot = element("div", { class: "foot" });
    const copy = action("copy", "Copy", () => copyText(message.content, copy));
    foot.append(...[usageLine(message)].filter(Boolean));
    if (message.content) foot.append(copy);
    if (does.edit) foot.append(action("edit", "Edit", does.edit));
    if (does.regenerate && !message.problem) foot.append(action("again", "Answer again", does.regenerate));
    article.append(foot);
  }
  return article;
}

// A text that the model continues in place: what was given and what was written, in one block.
export function textArticle(messages, { confidence, does }) {
  const whole = element("div", { class: "body raw" });
  for (const message of messages) {
    const part = element("span", { class: message.role === "user" ? "given" : "written" });
    const shade = message.role === "assistant" && confidence && message.tokens?.length;
    part.append(shade ? shaded(message.tokens) : message.content);
    if (message.live) part.classList.add("live");
    whole.append(part);
  }
  const last = messages.at(-1);
  const article = element("article", { class: "document", "aria-label": "Text", "aria-busy": last.live ? "true" : false });
  article.append(whole);
  if (last.problem) article.append(failure(last.problem, does.regenerate));
  if (!last.live) {
    const text = () => messages.map((message) => message.content).join("");
    const copy = action("copy", "Copy", () => copyText(text(), copy));
    const foot = element("div", { class: "foot" }, usageLine(last), copy, action("edit", "Edit the text", does.edit));
    if (!last.problem) foot.append(action("again", "Write the end again", does.regenerate));
    article.append(foot);
  }
  return article;
}

// What an empty conversation shows.
export function welcome(chat, model) {
  const lines = chat
    ? ["Ask something", "Answers are written as the model computes them."]
    : ["Begin a text", "The model continues it from where you leave off."];
  return element(
    "div",
    { class: "welcome" },
    icon("bolt"),
    element("h1", {}, lines[0]),
    element("p", {}, model && chat && !model.chat ? "This model was not trained to chat: Text suits it better." : lines[1]),
  );
}
