// Markdown as chat models write it, built from elements and text nodes alone: nothing in an answer can become markup.
// Other than CommonMark: line breaks count, **bold** may touch Hangul on either side ("**말(語)**은"), bare addresses end
// where ASCII ends ("https://a.kr에서"), nested lists need two spaces, images are links, HTML is text.

import { button, el, t } from "./dom.js";
import { highlight } from "./highlight.js";

const DEPTH = 8; // of quotes, lists and emphasis in each other; deeper is plain text
const FENCE = /^( *)(`{3,}(?=[^`]*$)|~{3,})\s*([\w+#.-]*)/;
const HEADING = /^ {0,3}(#{1,6})(?:[ \t]+|$)/;
const RULE = /^ {0,3}([-*_])(?:[ \t]*\1){2,}[ \t]*$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( *)([-*+]|\d{1,3}[.)])(?: +|$)/;
const DIVIDER = /^ {0,3}\|?[ \t]*:?-+:?[ \t]*(?:\|[ \t]*:?-+:?[ \t]*)*\|?[ \t]*$/;
const LINK =
  /!?\[((?:[^[\]\\]|\\[^]|\[[^[\]]*\])*)\]\(\s*<?([^\s<>()]*(?:\([^\s<>()]*\)[^\s<>()]*)*)>?(?:\s+"[^"]*")?\s*\)/y;
const ANGLE = /<((?:https?:\/\/|mailto:)[^\s<>]*)>/y;
const BARE = /https?:\/\/[\w.~:/?#@!$&'()*+,;=%[\]-]*[\w/#=&~-]/y;
const BREAK = /<br\s{0,9}\/?>/iy;
const SPECIAL = /[\\`*_~[!<\n]|https?:/g;
const PUNCTUATION = /[!-/:-@[-`{-~]/;

let growing = false; // the text is still being written: what is open at its end counts as closed

/** Renders a text that grows. All blocks but the last are final, so each update costs only the last block. */
export class Markdown {
  #text = "";
  #final = 0; // characters
  #count = 0; // and blocks that will not change

  constructor(root) {
    this.root = root;
  }

  update(text, grows = false) {
    if (!text.startsWith(this.#text)) this.#final = this.#count = 0;
    this.#text = text;
    growing = grows;
    const lines = text.slice(this.#final).split("\n");
    const made = blocks(lines, 0);
    while (this.root.children.length > this.#count) this.root.lastElementChild.remove();
    made.forEach((block, n) => {
      growing = grows && n === made.length - 1;
      this.root.append(block.make());
    });
    const open = made.at(-1)?.start === lines.length - 1 ? 2 : 1; // half a line may yet belong to the block before
    const final = made.length - open;
    if (final < 1) return;
    this.#final += lines.slice(0, made[final].start).reduce((sum, line) => sum + line.length + 1, 0);
    this.#count += final;
  }
}

/** [{make, start}]: what makes the block's element, and the line it starts on. */
function blocks(lines, depth) {
  const made = [];
  for (let i = 0; i < lines.length; ) {
    const start = i;
    let found, make;
    if (!lines[i].trim()) {
      i++;
      continue;
    } else if ((found = FENCE.exec(lines[i]))) {
      const [, indent, mark, name] = found;
      const closes = (line) => line.trim().startsWith(mark) && !line.trim().replaceAll(mark[0], "");
      while (++i < lines.length && !closes(lines[i]));
      const body = lines.slice(start + 1, i++).map((line) => dedent(line, indent.length));
      make = () => code(body.join("\n"), name.toLowerCase());
    } else if ((found = HEADING.exec(lines[i]))) {
      const text = lines[i++].slice(found[0].length).trim().replace(/ #+$/, "");
      const tag = `h${Math.min(found[1].length + 2, 6)}`; // the page's own headings are above
      make = () => inline(el(tag), text);
    } else if (RULE.test(lines[i])) {
      make = () => el("hr");
      i++;
    } else if (depth < DEPTH && QUOTE.test(lines[i])) {
      while (i < lines.length && (QUOTE.test(lines[i]) || (lines[i].trim() && !begins(lines[i])))) i++;
      const body = lines.slice(start, i).map((line) => line.replace(QUOTE, ""));
      make = () => el("blockquote", {}, ...inner(body, depth));
    } else if (depth < DEPTH && (found = ITEM.exec(lines[i]))) {
      ({ make, i } = list(lines, i, found, depth));
    } else if (tabular(lines, i)) {
      for (i += 2; i < lines.length && lines[i].includes("|"); ) i++;
      const rows = lines.slice(start, i);
      make = () => table(rows);
    } else {
      while (++i < lines.length && lines[i].trim() && !begins(lines[i]) && !tabular(lines, i));
      const text = lines.slice(start, i).map((line) => line.trim()).join("\n");
      make = () => inline(el("p"), text);
    }
    made.push({ make, start });
  }
  return made;
}

const inner = (lines, depth) => blocks(lines, depth + 1).map((block) => block.make());
const tabular = (lines, i) => [lines[i], lines[i + 1]].every((line) => line?.includes("|")) && DIVIDER.test(lines[i + 1]);
const begins = (line) => [FENCE, HEADING, RULE, QUOTE, ITEM].some((pattern) => pattern.test(line));
const dedent = (line, most) => line.slice(Math.min(most, line.search(/[^ ]|$/)));

function list(lines, i, [, { length: base }, marker], depth) {
  const kind = (mark) => (/\d/.test(mark) ? mark.at(-1) : mark);
  const ordered = /\d/.test(marker);
  const items = [];
  while (i < lines.length) {
    const found = ITEM.exec(lines[i]);
    const sibling = found && found[1].length < base + 2 && kind(found[2]) === kind(marker) && !RULE.test(lines[i]);
    if (!sibling) break;
    const first = i;
    let width = found[0].length; // what belongs to an item should be this far in; two spaces are enough
    for (i++; i < lines.length; i++) {
      const inside = lines[i].search(/\S/) >= base + 2;
      const lazy = lines[i - 1].trim() && lines[i].trim() && !begins(lines[i]);
      if (lines[i].trim() && !inside && !lazy) break;
      if (inside) width = Math.min(width, lines[i].search(/\S/));
    }
    const body = lines.slice(first, i).map((line) => dedent(line, width));
    body[0] = lines[first].slice(found[0].length).replace(/^\[ \] /, "☐ ").replace(/^\[[xX]\] /, "☑ ");
    items.push(body);
  }
  const made = () => items.map((body) => el("li", {}, ...inner(body, depth)));
  return { make: () => el(ordered ? "ol" : "ul", { start: ordered ? parseInt(marker) : undefined }, ...made()), i };
}

function table([head, divider, ...rows]) {
  const cells = (line) => line.trim().replace(/^\|/, "").replace(/\|$/, "").split(/(?<!\\)\|/).map((cell) => cell.trim());
  const sides = cells(divider).map((cell) => (cell.endsWith(":") ? (cell.startsWith(":") ? "center" : "end") : "start"));
  const row = (line, tag) => {
    const texts = cells(line);
    const cell = (side, n) => inline(el(tag, { class: side }), texts[n]?.replaceAll("\\|", "|") ?? "");
    return el("tr", {}, ...sides.map(cell));
  };
  const body = el("tbody", {}, ...rows.map((line) => row(line, "td")));
  return el("div", { class: "table", tabIndex: 0 }, el("table", {}, el("thead", {}, row(head, "th")), body));
}

function code(text, name) {
  const copies = button("copy", "copy");
  copies.dataset.code = "";
  const bar = el("figcaption", {}, el("span", {}, name), copies);
  return el("figure", {}, bar, el("pre", { tabIndex: 0 }, el("code", { translate: false }, ...highlight(text, name))));
}

/** Append text with emphasis, code, links and line breaks to an element; the element. */
function inline(parent, text, depth = 0, linked = false) {
  const missing = new Set(); // marks that nothing closes: looked for once
  let plain = "";
  const add = (node) => {
    parent.append(plain, node);
    plain = "";
  };
  for (let i = 0; i < text.length; ) {
    SPECIAL.lastIndex = i;
    const next = SPECIAL.exec(text)?.index ?? text.length;
    plain += text.slice(i, next);
    if ((i = next) === text.length) break;
    const char = text[i];
    const at = (pattern) => ((pattern.lastIndex = i), pattern.exec(text));
    let found;
    if (char === "\\" && PUNCTUATION.test(text[i + 1] ?? "")) {
      plain += text[i + 1];
      i += 2;
    } else if (char === "\n") {
      add(el("br"));
      i++;
    } else if (char === "`") {
      const end = codeEnd(text, i);
      const size = run(text, i);
      if (end) add(el("code", { translate: false }, text.slice(i + size, end - size).replace(/^ (.*[^ ].*) $/s, "$1")));
      else plain += text.slice(i, i + size);
      i = end || i + size;
    } else if (depth < DEPTH && (found = emphasis(text, i, missing))) {
      const { size, end, tags } = found;
      const inner = inline(el(tags[0]), text.slice(i + size, end), depth + 1, linked);
      add(tags[1] ? el(tags[1], {}, inner) : inner);
      i = end + size;
    } else if (depth < DEPTH && !linked && (char === "[" || text[i + 1] === "[") && (found = at(LINK))) {
      add(link(found[2], (node) => inline(node, found[1] || found[2], depth + 1, true)));
      i += found[0].length;
    } else if (char === "<" && (found = at(BREAK))) {
      add(el("br"));
      i += found[0].length;
    } else if (!linked && (found = char === "<" ? at(ANGLE) : char === "h" && at(BARE))) {
      const address = found[1] ?? (found[0].includes("(") ? found[0] : found[0].replace(/\).*$/, ""));
      add(link(address, (node) => node.append(address) ?? node));
      i += char === "<" ? found[0].length : address.length;
    } else {
      const size = "*_~".includes(char) ? run(text, i) : 1;
      plain += text.slice(i, i + size);
      i += size;
    }
  }
  parent.append(plain);
  return parent;
}

/** A link where the address is safe; else a span with the same content. */
function link(address, fill) {
  const safe = /^(?:https?:\/\/|mailto:)/i.test(address) && URL.canParse(address);
  if (!safe) return fill(el("span"));
  return fill(el("a", { href: address, title: address, target: "_blank", rel: "noopener noreferrer nofollow" }));
}

function run(text, i) {
  let end = i + 1;
  while (text[end] === text[i]) end++;
  return end - i;
}

/** Where the code span that starts here ends; 0 where it does not. */
function codeEnd(text, i) {
  const size = run(text, i);
  for (let j = text.indexOf("`", i + size); j >= 0; j = text.indexOf("`", j)) {
    const length = run(text, j);
    j += length;
    if (length === size) return j;
  }
  return 0;
}

const TAGS = { "*": [["em"], ["strong"], ["em", "strong"]], _: [["em"], ["strong"], ["em", "strong"]], "~": [, ["del"]] };

/** {size of the mark, where the closing one is, tags} of the emphasis that starts here, if one does. */
function emphasis(text, i, missing) {
  const mark = text[i];
  const size = TAGS[mark] ? Math.min(run(text, i), 3) : 0;
  const tags = TAGS[mark]?.[size - 1];
  const word = (at) => /[\p{L}\p{N}]/u.test(text[at] ?? "");
  if (!tags || missing.has(mark + size) || !/\S/.test(text[i + size] ?? "")) return null;
  if (mark === "_" && word(i - 1)) return null; // snake_case
  for (let j = i + size; j < text.length; ) {
    if (text[j] === "\\") j += 2;
    else if (text[j] === "`") j = codeEnd(text, j) || j + run(text, j);
    else if (text[j] !== mark) j++;
    else {
      const length = run(text, j);
      const fits = length === size || (length >= 3 && size < 3);
      const inside = mark === "_" && word(j + length);
      if (fits && !inside && /\S/.test(text[j - 1])) return { size, end: j + length - size, tags };
      j += length;
    }
  }
  if (growing && size === 2 && mark === "*") return { size, end: text.length, tags };
  missing.add(mark + size);
  return null;
}
