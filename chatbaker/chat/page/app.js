// The chat page: wires the parts together and asks the server. State lives in the store and in `here`, the open
// conversation; a conversation goes on answering while another one is open.

import { ApiError, models, pause, setKey, stream } from "./api.js";
import { $, button, copy, el, plainEnter, recall, remember, safe, speak, t, textButton, toast } from "./dom.js";
import { Store, newId, titleOf } from "./store.js";
import { draw, show } from "./transcript.js";

const SAVE_MS = 400; // between writes of an answer that grows
const TRIES = 5; // at a busy server
const store = new Store();
const jobs = new Map(); // conversation -> {turn, stop, note}: the answers being written
const problems = new Map(); // conversation -> {text, question}
const touch = matchMedia("(hover: none) and (pointer: coarse)"); // no Shift there: Enter is a line, the button sends
const narrow = matchMedia("(max-width: 52rem)");
const fields = $("settings").querySelector("form").elements;
let here;
let atEnd = true;

// The open conversation

const fresh = () => ({ id: newId(), title: "", system: "", leaf: null, updated: 0 });
const known = (chat) => store.chats.has(chat.id) && !chat.deleted;
const draft = () => `draft-${known(here) ? here.id : "new"}`; // of this tab; outlives a reload

let opening;
async function open(chat, push = true) {
  opening = chat;
  if (known(chat)) await store.load(chat.id); // a new one is there at once: typing may go on
  if (opening !== chat) return;
  here = chat;
  document.body.classList.add("ready");
  const address = known(chat) ? `#${chat.id}` : location.pathname + location.search;
  if (push) history.pushState(null, "", address);
  $("box").value = recall(draft(), "sessionStorage") ?? "";
  if (narrow.matches) toggleSide(false);
  atEnd = true;
  fit();
  refresh();
  toEnd();
  if (!touch.matches) $("box").focus();
}

const acts = {
  live: (turn) => jobs.get(turn.chat)?.turn === turn,
  versions: (turn) => store.versions(turn),
  retry: (turn) => answer(here, store.turn(here.id, turn.parent)),
  resend: (turn, text) => send(text, turn.parent),
  pick(turn, control) {
    here = store.change(here.id, { leaf: store.tip(turn).id });
    refresh();
    const tools = document.querySelector(`[data-id="${turn.id}"] .tools`);
    (tools.querySelector(`.${control}:enabled`) ?? tools.querySelector(".older:enabled, .newer:enabled"))?.focus();
  },
};

function refresh() {
  const path = store.path(here);
  const job = jobs.get(here.id);
  acts.busy = Boolean(job);
  acts.note = job?.note;
  draw(path, acts);
  $("welcome").hidden = path.length > 0 || problems.has(here.id);
  $("title").textContent = here.title || t("new_chat");
  document.title = here.title ? `${here.title} · ChatBaker` : "ChatBaker";
  $("send").hidden = acts.busy;
  $("stop").hidden = !acts.busy;
  $("export").disabled = !known(here);
  $("tune").classList.toggle("set", Boolean(here.system));
  const last = path.at(-1);
  const unanswered = last?.role === "user" && !acts.busy && { text: t("empty_answer"), question: last };
  const problem = problems.get(here.id) || unanswered;
  const again = () => textButton(t("try_again"), () => answer(here, problem.question));
  $("problem").replaceChildren(...(problem ? [el("p", {}, problem.text), again()] : []));
  listChats();
}

/** Ask, in a new turn below `parent`; where that is not given, below the last answer. A question nobody answered stays
 * beside it as another version. */
function send(text, parent) {
  const content = text.normalize("NFC").trim();
  if (!content || jobs.has(here.id)) return false;
  const last = store.path(here).at(-1);
  const above = parent !== undefined ? parent : last?.role === "user" ? last.parent : (last?.id ?? null);
  const isNew = !known(here);
  const question = { id: newId(), chat: here.id, parent: above, role: "user", content, created: Date.now() };
  store.write(store.add(question));
  here = store.change(here.id, { ...(isNew && here), title: here.title || titleOf(content), deleted: null });
  if (isNew) history.pushState(null, "", `#${here.id}`);
  answer(here, question);
  return true;
}

async function answer(chat, question) {
  if (jobs.has(chat.id)) return;
  const before = chat.leaf;
  const stop = new AbortController();
  const turn = { id: newId(), chat: chat.id, parent: question.id, role: "assistant", content: "", finish: null };
  turn.created = Math.max(Date.now(), question.created + 1);
  const job = { turn, stop, note: "" };
  const path = store.path({ id: chat.id, leaf: question.id });
  jobs.set(chat.id, job);
  problems.delete(chat.id);
  store.add(turn);
  store.change(chat.id, { leaf: turn.id, updated: Date.now() });
  atEnd = true;
  changed(chat);
  toEnd();
  $("speech").textContent = t("answering");
  try {
    await fill(job, body(chat, path));
    if (!$("choice").value) connect();
    if (!turn.content.trim()) problems.set(chat.id, { text: t("err_empty"), question });
  } catch (error) {
    turn.finish = stop.signal.aborted ? "stopped" : "interrupted";
    if (!stop.signal.aborted) problems.set(chat.id, { text: explain(error), question });
  }
  jobs.delete(chat.id);
  clearTimeout(job.saving);
  if (turn.content.trim()) store.write(turn);
  else {
    store.forget(turn);
    const old = store.path({ id: chat.id, leaf: before }); // an old answer stays where no new one comes
    store.change(chat.id, { leaf: old.includes(question) ? old.at(-1).id : question.id });
  }
  changed(chat);
  if (here.id === chat.id) $("speech").textContent = `${t("done")} ${turn.content.slice(0, 1000)}`;
}

/** What the page shows of a conversation, after its turns or jobs changed. */
function changed(chat) {
  if (here.id === chat.id) here = store.chats.get(chat.id) ?? here;
  refresh();
}

function body(chat, path) {
  const said = path.map(({ role, content }) => ({ role, content }));
  const messages = chat.system ? [{ role: "system", content: chat.system }, ...said] : said;
  const sampling = {};
  for (const field of fields) {
    const value = field.validity.valid ? field.value : field.defaultValue;
    if (field.name && value) sampling[field.name] = Number(value);
  }
  return { model: $("choice").value || undefined, messages, ...sampling };
}

/** Stream into the job's turn. A busy server is asked again, when it says. Throws what the stream throws. */
async function fill(job, request) {
  const { turn, stop: { signal } } = job;
  const began = performance.now();
  let [first, last, chunks] = [0, 0, 0];
  for (let tries = 1; ; tries++) {
    try {
      for await (const event of stream(request, signal)) {
        const choice = event.choices?.[0];
        if (event.truncated) turn.cut = event.truncated.messages;
        if (choice?.finish_reason) turn.finish = choice.finish_reason;
        if (choice?.delta?.content) {
          turn.content += choice.delta.content;
          last = performance.now();
          first ||= last;
          chunks++;
          grow(job);
          job.saving ??= setTimeout(() => (store.write(turn, true), (job.saving = null)), SAVE_MS);
        }
        const tokens = event.usage?.completion_tokens ?? chunks;
        const speed = tokens > 1 && last > first ? ((tokens - 1) * 1000) / (last - first) : 0;
        turn.usage = { tokens, speed, prompt: event.usage?.prompt_tokens, wait: (first - began) / 1000 };
      }
      return;
    } catch (error) {
      if (![429, 503].includes(error.status) || tries === TRIES || turn.content) throw error;
      const seconds = error.wait >= 0 ? Math.min(error.wait, 60) : 2 ** tries;
      job.note = t("waiting_busy", { n: seconds });
      refresh();
      await pause(seconds * 1000, signal);
    }
  }
}

/** Draw what was added, at most once a frame, and never for more than a tenth of the time however long the answer. */
function grow(job) {
  if (job.drawing || here.id !== job.turn.chat) return;
  job.drawing = true;
  setTimeout(() => requestAnimationFrame(() => {
    job.drawing = false;
    if (here.id !== job.turn.chat || !jobs.has(here.id)) return;
    const start = performance.now();
    if (job.turn.cut && !job.marked) (job.marked = true), refresh();
    else show(job.turn, acts);
    job.rest = (performance.now() - start) * 10;
  }), job.rest ?? 0);
}

function explain(error) {
  if (!(error instanceof ApiError)) console.error(error);
  if (error.status === 401) {
    $("key-form").hidden = false;
    $("key").focus();
    return t("err_401");
  }
  if (error.status === 429 || error.status === 503) return t("err_busy");
  if (error.code === "context_length_exceeded" || error.status === 413) return t("err_long");
  return error.status === 0 ? t("err_network") : t("err_server", { message: error.message });
}

// The server's models and key

async function connect() {
  try {
    const names = await models();
    $("choice").replaceChildren(...names.map((name) => el("option", {}, name)));
    if (names.includes(recall("model"))) $("choice").value = recall("model");
    $("models").hidden = names.length < 2;
    $("model").textContent = $("choice").value;
    $("key-form").hidden = true;
    return true;
  } catch (error) {
    toast(explain(error), "try_again", connect);
    return false;
  }
}

$("key-form").onsubmit = async (event) => {
  event.preventDefault();
  setKey($("key").value);
  if (!(await connect())) return toast(t("key_wrong"));
  $("key").value = "";
  $("toasts").replaceChildren();
  const waiting = problems.get(here.id)?.question;
  if (waiting) answer(here, waiting);
  $("box").focus();
};

// Writing

function fit() {
  $("box").style.height = "auto";
  $("box").style.height = `${$("box").scrollHeight}px`;
}

let composing = false;
$("box").oncompositionstart = () => (composing = true);
$("box").oncompositionend = () => void (composing = false);
$("box").oninput = () => (fit(), remember(draft(), $("box").value, "sessionStorage"));
$("box").onkeydown = (event) => {
  if (plainEnter(event) && !touch.matches) event.preventDefault(submit());
};
$("composer").onsubmit = (event) => event.preventDefault(submit());
$("composer").onclick = ({ target }) => void (target === $("composer") && $("box").focus());

function submit() {
  if (composing) $("box").blur(); // the button was pressed: the syllable at hand is finished and goes along
  const name = draft();
  if (!send($("box").value)) return;
  $("box").value = "";
  remember(name, "", "sessionStorage");
  fit();
  if (!touch.matches) $("box").focus();
}

const stop = () => jobs.get(here.id)?.stop.abort();
$("stop").onclick = () => (stop(), $("box").focus());
for (const node of document.querySelectorAll(".example")) node.onclick = () => send(node.textContent);
document.onkeydown = (event) => {
  const shown = narrow.matches && !$("side").inert;
  if (event.key === "Escape" && !event.isComposing && !$("settings").open) shown ? $("hide").click() : stop();
  // by its place: with a Korean layout the key is ㅐ
  if ((event.ctrlKey || event.metaKey) && event.shiftKey && event.code === "KeyO") event.preventDefault(open(fresh()));
};
$("turns").onclick = ({ target }) => {
  const figure = target.closest("[data-code]")?.closest("figure");
  if (figure) copy(figure.querySelector("code").textContent);
};

// Scrolling: the end stays in view only for who is there

const toEnd = () => ($("scroll").scrollTop = $("scroll").scrollHeight);
let top = 0;
$("scroll").onscroll = () => {
  const { scrollTop, scrollHeight, clientHeight } = $("scroll");
  const distance = scrollHeight - clientHeight - scrollTop;
  atEnd = distance < 8 || (atEnd && scrollTop >= top);
  top = scrollTop;
  $("latest").hidden = distance < 80;
};
$("latest").onclick = toEnd;
const watcher = new ResizeObserver(() => atEnd && toEnd());
for (const node of [$("scroll"), $("turns"), $("problem")]) watcher.observe(node);

// The list of conversations

let listing = 0;
async function listChats() {
  const turn = ++listing;
  const chats = await store.list($("search").value);
  if (turn !== listing || $("chats").querySelector("input")) return; // a newer list is coming; a name is being typed
  const focused = document.activeElement?.closest("#chats li")?.dataset.id;
  const empty = el("li", { class: "none" }, t($("search").value ? "none_found" : "none_yet"));
  $("chats").replaceChildren(...(chats.length ? chats.map(row) : [empty]));
  if (focused) $("chats").querySelector(`[data-id="${focused}"] button`)?.focus();
}

function row(chat) {
  const name = textButton(chat.title || t("untitled"), () => open(store.chats.get(chat.id)), "name");
  if (chat.id === here.id) name.setAttribute("aria-current", "page");
  const node = el("li", {}, name, button("edit", "rename", () => rename(chat, node)));
  node.append(button("delete", "delete", () => remove(chat)));
  node.dataset.id = chat.id;
  node.classList.toggle("live", jobs.has(chat.id));
  return node;
}

function rename(chat, node) {
  const box = el("input", { value: chat.title, "aria-label": t("rename"), maxLength: 120 });
  const end = (keeps) => {
    if (!box.isConnected) return;
    const title = box.value.normalize("NFC").trim();
    box.onblur = null;
    node.replaceChildren();
    if (keeps && title) store.change(chat.id, { title });
    changed(chat);
  };
  box.onkeydown = (event) => {
    if (plainEnter(event)) end(true);
    else if (event.key === "Escape" && !event.isComposing) event.stopPropagation(end(false));
  };
  box.onblur = () => end(true);
  node.replaceChildren(box);
  box.select();
}

function remove(chat) {
  jobs.get(chat.id)?.stop.abort();
  store.change(chat.id, { deleted: Date.now() });
  setTimeout(() => store.chats.get(chat.id)?.deleted && store.purge(chat.id), 10_000);
  if (here.id === chat.id) open(fresh());
  else listChats();
  toast(t("deleted", { title: chat.title }), "undo", () => open(store.change(chat.id, { deleted: null })));
}

$("new").onclick = () => open(fresh());
$("search").oninput = listChats;

function toggleSide(open) {
  document.body.classList.toggle("side", open);
  $("side").inert = !open;
  $("menu").setAttribute("aria-expanded", open);
  if (open && narrow.matches) $("hide").focus();
}
$("menu").onclick = () => toggleSide($("side").inert);
$("scrim").onclick = $("hide").onclick = () => (toggleSide(false), $("menu").focus());
narrow.onchange = () => toggleSide(!narrow.matches);

// Files

async function save(chats, name) {
  const lines = await Promise.all(chats.map((chat) => store.line(chat)));
  const href = URL.createObjectURL(new Blob([`${lines.join("\n")}\n`], { type: "application/json" }));
  el("a", { href, download: `${name.replace(/[\\/:*?"<>|\s]+/g, " ").trim() || "chat"}.jsonl` }).click();
  setTimeout(() => URL.revokeObjectURL(href), 60_000);
}

$("export").onclick = () => save([here], here.title);
$("export-all").onclick = async () => save(await store.list(), `chatbaker-${new Date().toISOString().slice(0, 10)}`);
$("import").onclick = () => $("file").click();
$("file").onchange = async ({ target }) => {
  let count = 0;
  try {
    const bytes = await target.files[0].arrayBuffer();
    const decoded = (name) => safe(() => new TextDecoder(name, { fatal: true }).decode(bytes));
    const text = decoded("utf-8") ?? decoded("euc-kr"); // which is CP949 in browsers
    for (const line of text.split("\n")) if (line.trim() && (await store.take(line))) count++;
  } catch {} // what came before the bad line is in
  target.value = "";
  toast(count ? t("imported", { n: count }) : t("bad_file"));
  listChats();
};

// Settings

function dress() {
  speak(recall("language"));
  $("language").value = document.documentElement.lang;
  $("hint").textContent = t(touch.matches ? "hint_touch" : "hint");
  $("theme").value = document.documentElement.dataset.theme = recall("theme") ?? "";
}

for (const name of ["language", "theme"]) $(name).onchange = () => (remember(name, $(name).value), dress(), refresh());
window.onstorage = () => (dress(), refresh()); // another tab's choice
$("choice").onchange = ({ target }) => (remember("model", target.value), ($("model").textContent = target.value));
$("tune").onclick = () => {
  $("system").value = here.system;
  $("settings").showModal();
};
$("reset").onclick = () => {
  for (const field of fields) if (field.name) field.value = field.defaultValue;
};
$("settings-close").onclick = () => $("settings").close();
$("settings").onclick = ({ target }) => void (target === $("settings") && $("settings").close()); // false would cancel
$("settings").querySelector("form").onsubmit = (event) => event.preventDefault($("settings").close());
$("settings").onclose = () => {
  const system = $("system").value.normalize("NFC").trim();
  here = known(here) ? store.change(here.id, { system }) : { ...here, system };
  remember("sampling", Object.fromEntries([...fields].map(({ name, value }) => [name, value])));
  refresh();
};

// Beginning and end

window.onpopstate = () => open(store.chats.get(location.hash.slice(1)) ?? fresh(), false);
window.onpagehide = () => remember("half", [...jobs.values()].map(({ turn }) => turn), "sessionStorage");

dress();
for (const [name, value] of Object.entries(recall("sampling") ?? {})) if (name && fields[name]) fields[name].value = value;
await store.open(
  (chat, turn) => {
    const mine = chat === here?.id && !jobs.has(chat);
    if (mine && !store.chats.has(chat)) open(fresh());
    else if (mine) changed(here);
    else if (here && !turn) listChats();
  },
  (chat) => jobs.has(chat),
  () => toast(t("err_store")),
);
for (const turn of recall("half", "sessionStorage") ?? []) if (turn.content) store.write(turn);
remember("half", [], "sessionStorage"); // what the disk had no time for when the page was left in mid-answer
toggleSide(!narrow.matches);
await open(store.chats.get(location.hash.slice(1)) ?? fresh(), false);
connect();
