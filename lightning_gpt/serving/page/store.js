// What the browser remembers: conversations and settings in localStorage, within bounds; the API key only as long as
// the tab is open. Where storage is switched off or full, the page works and forgets.

const MOST_CONVERSATIONS = 50;
const MOST_CHARACTERS = 2_000_000;

function read(storage, name, otherwise) {
  try {
    return JSON.parse(storage().getItem(name)) ?? otherwise;
  } catch {
    return otherwise;
  }
}

function write(storage, name, value) {
  try {
    storage().setItem(name, JSON.stringify(value));
    return true;
  } catch {
    return false;
  }
}

const local = () => localStorage;
const session = () => sessionStorage;

export const loadSettings = () => read(local, "settings", {});
export const saveSettings = (settings) => write(local, "settings", settings);
export const loadKey = () => read(session, "key", "");
export const saveKey = (key) => write(session, "key", key);

// [{id, title, model, chat, messages: [{role, content, ...}]}], newest first.
export function loadConversations() {
  const found = read(local, "conversations", []);
  return Array.isArray(found) ? found.filter((one) => one?.id && Array.isArray(one.messages)) : [];
}

// The newest that fit; tokens' probabilities are kept of none, as they are many times the text.
export function saveConversations(conversations) {
  const lean = conversations
    .filter((one) => one.messages.length)
    .slice(0, MOST_CONVERSATIONS)
    .map((one) => ({ ...one, messages: one.messages.map(({ tokens, live, ...kept }) => kept) }));
  let room = MOST_CHARACTERS;
  const fitting = lean.filter((one) => (room -= JSON.stringify(one).length) > 0);
  while (!write(local, "conversations", fitting) && fitting.length) fitting.pop();
}

export function saveTheme(theme) {
  try {
    localStorage.setItem("theme", theme); // theme.js reads it as it is
  } catch {
    // this page alone, then
  }
}
