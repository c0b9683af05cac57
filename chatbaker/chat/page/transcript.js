// The conversation on the page. One view per turn, kept and changed in place, so that selecting and reading go on while
// an answer grows.

import { $, arrange, button, copy, el, languageOf, number, plainEnter, t, textButton } from "./dom.js";
import { Markdown } from "./markdown.js";

const views = new Map();
let editing = null; // the id of the question being edited

/** Draw a path of turns. acts: {busy, note, live(turn), versions(turn), retry(turn), resend(turn, text), pick(turn)}. */
export function draw(path, acts) {
  for (const id of views.keys()) if (!path.some((turn) => turn.id === id)) views.delete(id);
  const cut = path.findLast((turn) => turn.cut !== undefined)?.cut;
  const nodes = path.map((turn) => show(turn, acts));
  if (cut) nodes.splice(cut, 0, el("li", { class: "cut" }, t("cut_here")));
  arrange($("turns"), nodes);
}

/** Show the turn as it now is; its element. */
export function show(turn, acts) {
  const mine = turn.role === "user";
  let view = views.get(turn.id);
  if (!view) {
    const text = el("div", { class: "text" });
    const foot = el("div", { class: "foot" });
    const name = el("h2", { class: "sr" });
    const node = el("li", { class: `turn ${turn.role}` }, name, text, foot);
    node.dataset.id = turn.id;
    view = { node, name, text, foot, markdown: mine ? null : new Markdown(text), shown: null };
    views.set(turn.id, view);
  }
  const live = acts.live(turn);
  view.name.textContent = t(mine ? "me" : "answer");
  view.node.setAttribute("aria-busy", live);
  if (editing === turn.id) return edit(view, turn, acts);
  const shown = `${live}${turn.content}`;
  if (view.shown !== shown) {
    if (mine) view.text.textContent = turn.content;
    else view.markdown.update(turn.content, live);
    view.text.lang = languageOf(turn.content);
    view.shown = shown;
  }
  const about = notes(turn, acts, live);
  const versions = acts.versions(turn);
  const key = JSON.stringify([about, live, acts.busy, versions.map(({ id }) => id), document.documentElement.lang]);
  if (view.key !== key) foot(view, turn, acts, live, about, versions);
  view.key = key;
  return view.node;
}

/** [class, text, tooltip] of the lines below a turn. */
function notes(turn, acts, live) {
  const { usage, finish, cut } = turn;
  if (live) return turn.content ? [] : [["waiting", acts.note || t("waiting")]];
  if (turn.role === "user" || turn.live) return [];
  const about = [];
  if (cut) about.push(["note", t("cut", { n: number(cut) })]);
  const why = ["length", "stopped"].includes(finish) ? finish : "interrupted";
  if (finish !== "stop") about.push(["note", t(`finish_${why}`)]);
  if (!usage) return about;
  const n = number(usage.tokens);
  const words = usage.speed ? t("tokens_speed", { n, speed: number(usage.speed, 1) }) : t("tokens", { n });
  const tip = usage.prompt && t("first", { wait: number(usage.wait, 2), n: number(usage.prompt) });
  return [...about, ["usage", words, tip || ""]];
}

function foot(view, turn, acts, live, about, versions) {
  const tools = el("div", { class: "tools" });
  const at = versions.findIndex(({ id }) => id === turn.id);
  if (versions.length > 1) {
    const step = (name, by) => {
      const node = button(name, name, () => acts.pick(versions[at + by], name));
      node.disabled = acts.busy || !versions[at + by];
      return node;
    };
    const place = el("span", {}, el("span", { class: "sr" }, t("version", { n: at + 1, total: versions.length })));
    place.append(el("span", { "aria-hidden": "true" }, `${at + 1}/${versions.length}`));
    tools.append(step("older", -1), place, step("newer", 1));
  }
  if (!live) {
    tools.append(button("copy", "copy", () => copy(turn.content)));
    const mine = turn.role === "user";
    const again = mine ? button("edit", "edit", () => begin(turn, acts)) : button("retry", "retry", () => acts.retry(turn));
    again.disabled = acts.busy;
    tools.append(again);
  }
  const lines = about.map(([name, text, title]) => el(name === "note" ? "p" : "span", { class: name, title }, text));
  const first = lines.filter(({ localName }) => localName === "p");
  view.foot.replaceChildren(...first, tools, ...lines.slice(first.length));
}

function begin(turn, acts) {
  editing = turn.id;
  show(turn, acts);
}

/** A question as a form. Sending makes a new version; the old one stays. */
function edit(view, turn, acts) {
  if (view.shown === editing) return view.node;
  const box = el("textarea", { value: turn.content, "aria-label": t("edit") });
  const end = () => {
    editing = view.shown = view.key = null;
    show(turn, acts);
  };
  const send = () => {
    end();
    acts.resend(turn, box.value);
  };
  box.onkeydown = (event) => {
    if (plainEnter(event)) event.preventDefault(send());
    else if (event.key === "Escape" && !event.isComposing) event.stopPropagation(end());
  };
  view.text.replaceChildren(box);
  view.foot.replaceChildren(textButton(t("cancel"), end), textButton(t("resend"), send, "main"));
  view.shown = editing;
  box.focus();
  return view.node;
}
