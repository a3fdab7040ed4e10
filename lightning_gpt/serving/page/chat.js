// The chat page: a conversation with a model of this service. No dependencies, no build step.

import { answer, ApiProblem } from "./api.js";
import { chooseModel, currentModel, loadModels, showModel, showVersion } from "./models.js";
import { messageArticle, textArticle, welcome } from "./messages.js";
import { confidenceWanted, limitTo, sampling, startSettings, systemPrompt } from "./settings.js";
import { closeDrawers, listConversations, openDrawer, startShell } from "./shell.js";
import { loadConversations, loadKey, saveConversations, saveKey } from "./store.js";

const byId = (id) => document.getElementById(id);
const log = byId("log");
const text = byId("text");
const notice = byId("notice");

let conversations = loadConversations();
let current = null;
let running = null; // AbortController of the answer that is being written
let editing = null; // index of the message that the field's text will replace
let key = loadKey();

// ---- what is shown

function lastOf(role) {
  return current.messages.findLastIndex((message) => message.role === role);
}

function draw(onlyLast = false) {
  const near = log.scrollHeight - log.scrollTop - log.clientHeight < 80;
  const { messages, chat } = current;
  const confidence = confidenceWanted();
  const can = running ? {} : { regenerate: () => regenerate(), edit: () => edit() };
  if (!messages.length) log.replaceChildren(welcome(chat, currentModel()));
  else if (!chat) log.replaceChildren(textArticle(messages, { confidence, does: can }));
  else {
    const does = (i) => ({
      edit: i === lastOf("user") ? can.edit : null,
      regenerate: i === messages.length - 1 && messages[i].role === "assistant" ? can.regenerate : null,
    });
    const article = (i) => messageArticle(messages[i], { chat, confidence, does: does(i) });
    if (onlyLast && log.lastChild) log.lastChild.replaceWith(article(messages.length - 1));
    else log.replaceChildren(...messages.map((_, i) => article(i)));
  }
  if (near || !onlyLast) log.scrollTop = log.scrollHeight;
}

function drawAll() {
  byId("send").hidden = running !== null;
  byId("stop").hidden = running === null;
  byId("editing").hidden = editing === null;
  byId("mode").elements[current.chat ? 0 : 1].checked = true;
  document.querySelector("[data-for=chat]").hidden = !current.chat;
  text.placeholder = current.chat ? "Write to the model" : "Write on; leave empty to let the model continue";
  listConversations(conversations, current, { open, remove });
  draw();
}

let frame = 0;
function drawSoon() {
  frame ||= requestAnimationFrame(() => {
    frame = 0;
    if (running) draw(true);
  });
}

// ---- conversations

function begin(chat = currentModel()?.chat ?? true) {
  stop();
  current = { id: crypto.randomUUID?.() ?? String(Date.now()), title: "", model: "", chat, messages: [] };
  conversations = [current, ...conversations.filter((one) => one.messages.length)];
  stopEditing();
  drawAll();
  if (matchMedia("(pointer: fine)").matches) text.focus(); // a screen keyboard would cover half the page
}

function open(conversation) {
  stop();
  current = conversation;
  if (current.model) chooseModel(current.model);
  stopEditing();
  drawAll();
  closeDrawers();
}

function remove(conversation) {
  conversations = conversations.filter((one) => one !== conversation);
  saveConversations(conversations);
  if (conversation === current) begin();
  else drawAll();
}

function keep() {
  const first = current.messages.find((message) => message.role === "user");
  current.title = first?.content.trim().replace(/\s+/g, " ").slice(0, 80) || "Untitled";
  current.model = currentModel()?.id ?? current.model;
  saveConversations(conversations);
}

// ---- asking

function requestBody(messages) {
  const { chat } = current;
  const body = { model: currentModel()?.id, ...sampling(chat) };
  if (!chat) return { ...body, prompt: messages.map((message) => message.content).join("") };
  const said = messages.filter((message) => message.content).map(({ role, content }) => ({ role, content }));
  const system = systemPrompt().trim();
  return { ...body, messages: system ? [{ role: "system", content: system }, ...said] : said };
}

async function ask() {
  const conversation = current;
  const message = { role: "assistant", content: "", tokens: [], live: true };
  const body = requestBody(conversation.messages);
  conversation.messages.push(message);
  const mine = (running = new AbortController());
  conversations = [conversation, ...conversations.filter((one) => one !== conversation)];
  drawAll();
  const begun = performance.now();
  let [first, latest, pieces] = [null, null, 0];
  const usage = { finish: null };
  try {
    for await (const piece of answer(body, conversation.chat, key, mine.signal)) {
      if (piece.text || piece.tokens.length) {
        latest = performance.now();
        first ??= latest;
        pieces += piece.tokens.length || 1;
      }
      message.content += piece.text;
      message.tokens.push(...piece.tokens);
      usage.finish = piece.finish ?? usage.finish;
      if (piece.usage) Object.assign(usage, { tokens: piece.usage.completion_tokens, prompt: piece.usage.prompt_tokens });
      drawSoon();
    }
  } catch (error) {
    if (mine.signal.aborted) usage.finish = "stopped";
    else message.problem = problemOf(error);
  }
  message.live = false;
  if (first !== null) {
    usage.tokens ??= pieces;
    usage.ttft = (first - begun) / 1000;
    if (latest > first) usage.rate = (1000 * (usage.tokens - 1)) / (latest - first);
  }
  if (usage.finish === "stopped") usage.tokens ??= 0;
  if (usage.tokens != null) message.usage = usage;
  if (running === mine) running = null;
  if (conversation === current) keep();
  else saveConversations(conversations);
  drawAll();
  if (message.problem?.status === 401) askForKey();
}

// What is kept of a failure: plain data, so that it can be stored.
function problemOf(error) {
  const known = error instanceof ApiProblem;
  const { status, retryAfter } = known ? error : { status: -1, retryAfter: null };
  if (!known) console.error(error);
  const message = known ? error.message : `The page stumbled: ${error.message}`;
  return { status, message, readyAt: retryAfter === null ? null : Date.now() + 1000 * retryAfter };
}

function stop() {
  running?.abort();
  running = null;
}

function send() {
  const content = text.value;
  const goesOn = !current.chat && editing === null && current.messages.length > 0;
  if (running || !currentModel() || (!content.trim() && !goesOn)) return;
  if (editing !== null) current.messages.splice(editing);
  if (content) current.messages.push({ role: "user", content });
  stopEditing();
  write("");
  ask();
}

function regenerate() {
  if (running) return;
  if (current.messages.at(-1)?.role === "assistant") current.messages.pop();
  if (current.messages.length) ask();
  else drawAll();
}

// ---- the field

function write(value) {
  text.value = value;
  grow();
}

function grow() {
  if (CSS.supports("field-sizing", "content")) return;
  text.style.height = "auto";
  text.style.height = `${text.scrollHeight}px`;
}

// In a conversation the last question, in a text all of it.
function edit() {
  const index = current.chat ? lastOf("user") : 0;
  if (running || index < 0 || !current.messages.length) return;
  editing = index;
  const parts = current.chat ? [current.messages[index]] : current.messages;
  write(parts.map((message) => message.content).join(""));
  byId("editing").hidden = false;
  text.focus();
  text.setSelectionRange(text.value.length, text.value.length);
}

function stopEditing() {
  if (editing === null) return;
  editing = null;
  write("");
  byId("editing").hidden = true;
}

function escape() {
  if (running) stop();
  else if (editing !== null) stopEditing();
  else closeDrawers();
}

function onKey(event) {
  const typing = event.target.closest("input:not([type=range], [type=radio], [type=checkbox]), textarea, select");
  if (event.isComposing) return;
  if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "k") begin();
  else if (event.key === "Escape") escape();
  else if (event.key === "/" && !typing) text.focus();
  else if (event.target !== text) return;
  else if (event.key === "Enter" && !event.shiftKey) send();
  else if (event.key === "ArrowUp" && text.value === "" && current.messages.length) edit();
  else return;
  event.preventDefault();
}

// ---- the service

function askForKey() {
  openDrawer("settings");
  byId("key").focus();
}

function say(words) {
  notice.textContent = words;
  notice.hidden = !words;
}

async function connect() {
  try {
    await loadModels(key, conversations[0]?.model);
    say("");
    limitTo(currentModel()?.max_model_len);
    if (!current.messages.length) current.chat = currentModel()?.chat ?? true;
    drawAll();
  } catch (error) {
    const problem = problemOf(error);
    if (problem.status === 401) {
      say("The service wants an API key: write it into the settings.");
      askForKey();
      return;
    }
    const seconds = Math.max(1, Math.round(problem.readyAt ? (problem.readyAt - Date.now()) / 1000 : 3));
    say(`${problem.message} Trying again in ${seconds} s.`);
    setTimeout(connect, 1000 * seconds);
  }
}

startShell();
startSettings(() => draw());
byId("key").value = key;
byId("key").addEventListener("change", ({ target }) => {
  key = target.value.trim();
  saveKey(key);
  connect();
});
byId("model").addEventListener("change", () => {
  showModel();
  limitTo(currentModel()?.max_model_len);
  if (!current.messages.length) current.chat = currentModel()?.chat ?? true;
  drawAll();
});
byId("mode").addEventListener("change", ({ target }) => {
  const chat = target.value === "chat";
  if (current.messages.length) begin(chat);
  else current.chat = chat;
  drawAll();
});
byId("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
byId("stop").addEventListener("click", () => {
  stop();
  text.focus();
});
byId("editing").querySelector("button").addEventListener("click", stopEditing);
byId("new").addEventListener("click", () => {
  begin();
  closeDrawers();
});
text.addEventListener("input", grow);
document.addEventListener("keydown", onKey);
begin();
connect();
showVersion();
