// A little Markdown as DOM nodes: fences, headings, lists, quotes, rules, **bold**, *emphasis*, `code`. No HTML, no
// links and no pictures, so that an answer can neither run nor fetch anything. Half-written text is fine.

import { copyText, element, icon } from "./dom.js";

const INLINE = /`([^`\n]+)`|\*\*(?=\S)(.+?)\*\*|(?<![\w*])\*(?=[^\s*])([^*\n]+?)\*(?![\w*])/s;

function inline(text) {
  const nodes = [];
  for (let found; (found = INLINE.exec(text)); text = text.slice(found.index + found[0].length)) {
    if (found.index) nodes.push(text.slice(0, found.index));
    const [, code, strong, emphasis] = found;
    if (code !== undefined) nodes.push(element("code", {}, code));
    else nodes.push(element(strong !== undefined ? "strong" : "em", {}, ...inline(strong ?? emphasis)));
  }
  if (text) nodes.push(text);
  return nodes;
}

function codeBlock(language, lines) {
  const text = lines.join("\n");
  const copy = element("button", { type: "button", class: "quiet", "aria-label": "Copy code" }, icon("copy"));
  copy.addEventListener("click", () => copyText(text, copy));
  const head = element("div", { class: "code-head" }, element("span", {}, language || "text"), copy);
  return element("div", { class: "code" }, head, element("pre", { tabindex: "0" }, element("code", {}, text)));
}

const FENCE = /^ {0,3}(```+|~~~+)\s*([\w+#.-]*)/;
const ITEM = /^(\s*)([-*+•]|\d{1,9}[.)])\s+(.*)$/;
const HEADING = /^(#{1,6})\s+(.+)$/;
const RULE = /^ {0,3}([-*_])(\s*\1){2,}\s*$/;
const QUOTE = /^ {0,3}>\s?/;

// Lines that begin with a mark; deeper ones belong to the item above them.
function list(lines, at) {
  const [, indent, mark] = ITEM.exec(lines[at]);
  const ordered = /\d/.test(mark);
  const made = element(ordered ? "ol" : "ul", ordered ? { start: Number.parseInt(mark, 10) } : {});
  for (let found; at < lines.length && (found = ITEM.exec(lines[at])); ) {
    if (found[1].length > indent.length + 1 && made.lastChild) {
      const [inner, next] = list(lines, at);
      made.lastChild.append(inner);
      at = next;
      continue;
    }
    if (found[1].length < indent.length || /\d/.test(found[2]) !== ordered) break;
    made.append(element("li", {}, ...inline(found[3])));
    at += 1;
    const blankThenItem = lines[at]?.trim() === "" && ITEM.test(lines[at + 1] ?? "");
    if (blankThenItem) at += 1;
  }
  return [made, at];
}

export function markdown(text) {
  const page = document.createDocumentFragment();
  const lines = text.replace(/\r\n?/g, "\n").split("\n");
  let paragraph = [];
  const close = () => {
    if (paragraph.length) page.append(element("p", {}, ...inline(paragraph.join("\n"))));
    paragraph = [];
  };
  for (let at = 0; at < lines.length; ) {
    const line = lines[at];
    const fence = FENCE.exec(line);
    const heading = HEADING.exec(line);
    if (fence) {
      close();
      let end = at + 1;
      while (end < lines.length && !lines[end].trimStart().startsWith(fence[1])) end += 1;
      page.append(codeBlock(fence[2], lines.slice(at + 1, end)));
      at = end + 1;
    } else if (heading) {
      close();
      page.append(element(`h${Math.min(heading[1].length + 2, 6)}`, {}, ...inline(heading[2])));
      at += 1;
    } else if (RULE.test(line)) {
      close();
      page.append(element("hr"));
      at += 1;
    } else if (ITEM.test(line)) {
      close();
      const [made, next] = list(lines, at);
      page.append(made);
      at = next;
    } else if (QUOTE.test(line)) {
      close();
      const quoted = [];
      for (; at < lines.length && QUOTE.test(lines[at]); at += 1) quoted.push(lines[at].replace(QUOTE, ""));
      page.append(element("blockquote", {}, ...inline(quoted.join("\n"))));
    } else {
      if (line.trim()) paragraph.push(line);
      else close();
      at += 1;
    }
  }
  close();
  return page;
}
