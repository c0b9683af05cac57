// Elements, words and small services that every part of the page uses. Text enters the page only as text nodes.

const words = await (await fetch("words.json")).json();
const LANGUAGES = ["ko", "en"];
export const $ = (id) => document.getElementById(id);
export let language = "en";

export const safe = (work) => {
  try {
    return work();
  } catch {} // storage that is full or forbidden: then things last as long as the page
};
/** Small things of this browser, or with sessionStorage of this tab. */
export const remember = (name, value, where = "localStorage") =>
  safe(() => window[where].setItem(`chatbaker-${name}`, JSON.stringify(value)));
export const recall = (name, where = "localStorage") => safe(() => JSON.parse(window[where].getItem(`chatbaker-${name}`)));

export const t = (key, values = {}) =>
  words[key][LANGUAGES.indexOf(language)].replace(/\{(\w+)\}/g, (_, name) => values[name]);

export const number = (value, digits = 0) => value.toLocaleString(language, { maximumFractionDigits: digits });

/** Elements carry their words' names: data-t is the text, data-label the accessible name, data-hint the placeholder. */
export function speak(wanted) {
  const known = [wanted, ...navigator.languages].map((tag) => (tag ?? "").slice(0, 2));
  language = known.find((tag) => LANGUAGES.includes(tag)) ?? "en";
  document.documentElement.lang = language;
  for (const node of document.querySelectorAll("[data-t]")) node.textContent = t(node.dataset.t);
  for (const node of document.querySelectorAll("[data-label]")) label(node, node.dataset.label);
  for (const node of document.querySelectorAll("[data-hint]")) node.placeholder = t(node.dataset.hint);
}

function label(node, key) {
  node.setAttribute("aria-label", t(key));
  if (node.localName === "button") node.title = t(key);
}

/** An element. Properties are set as such, names with a hyphen and `class` as attributes; null children are left out. */
export function el(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined) continue;
    if (name === "class" || name.includes("-")) node.setAttribute(name, value);
    else node[name] = value;
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("aria-hidden", "true");
  svg.appendChild(document.createElementNS(svg.namespaceURI, "use")).setAttribute("href", `#i-${name}`);
  return svg;
}

export function button(name, key, onclick) {
  const node = el("button", { type: "button", class: `icon ${name}`, onclick }, icon(name));
  label(node, key);
  return node;
}

export const textButton = (text, onclick, name) => el("button", { type: "button", class: name, onclick }, text);

/** Make the children of a parent these, touching only what differs: selection, focus and scroll positions stay. */
export function arrange(parent, nodes) {
  nodes.forEach((node, n) => parent.children[n] !== node && parent.insertBefore(node, parent.children[n] ?? null));
  while (parent.children.length > nodes.length) parent.lastElementChild.remove();
}

/** Enter that is not part of an input method's composition. Safari ends the composition before its key press comes,
 * so isComposing is false there; the key code 229 still tells. No timing: one Enter after a composition counts. */
export const plainEnter = (event) =>
  event.key === "Enter" && !event.shiftKey && !event.isComposing && event.keyCode !== 229;

/** Hangul needs a Korean voice and Korean line breaking, whatever the language of the page. */
export const languageOf = (text) => (/[\u1100-\u11ff\u3131-\u318e\uac00-\ud7a3]/.test(text) ? "ko" : "en");

export function toast(text, key, action) {
  const close = () => node.remove();
  const node = el("div", { class: "toast" }, el("span", {}, text));
  if (key) node.append(textButton(t(key), () => (close(), action())));
  $("toasts").replaceChildren(node);
  setTimeout(close, 8000);
}

/** To the clipboard; also on plain http pages of other machines, where browsers have no clipboard interface. */
export async function copy(text) {
  let done = true;
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const box = el("textarea", { value: text, class: "sr" });
    const focused = document.activeElement;
    document.body.append(box);
    box.select();
    done = document.execCommand("copy");
    box.remove();
    focused?.focus();
  }
  toast(t(done ? "copied" : "copy_failed"));
}
