// Conversations, kept in IndexedDB. A conversation is a tree: a turn knows its parent, and turns with one parent are
// versions of each other. Turns are only ever added, and a conversation's fields are merged one by one, so several tabs
// on one conversation make versions, never lose any. Tabs tell each other of changes over a channel.

const request = (asked) =>
  new Promise((resolve, reject) => {
    asked.onsuccess = () => resolve(asked.result);
    asked.onerror = () => reject(asked.error);
  });

export const newId = () => [...crypto.getRandomValues(new Uint8Array(12))].map((b) => b.toString(36)).join("");
const UNDO_SECONDS = 10;

export class Store {
  chats = new Map();
  #turns = new Map(); // of the conversations opened so far: chat -> id -> turn
  #db = null;
  #channel = new BroadcastChannel("chatbaker");

  /** changed(chat id, turn or undefined): another tab did something; it does not move us off an answer of our own, which
   * busy(chat id) tells. failed(): the disk refuses. */
  async open(changed, busy, failed) {
    this.failed = failed;
    this.#channel.onmessage = ({ data: { chat, fields, turn } }) => {
      if (busy(chat)) delete fields?.leaf;
      if (fields) this.chats.set(chat, { ...this.chats.get(chat), ...fields });
      if (fields?.gone) this.chats.delete(chat);
      if (turn) this.#turns.get(chat)?.set(turn.id, turn);
      changed(chat, turn);
    };
    try {
      const opening = indexedDB.open("chatbaker", 1);
      opening.onupgradeneeded = () => {
        opening.result.createObjectStore("chats", { keyPath: "id" });
        opening.result.createObjectStore("turns", { keyPath: "id" }).createIndex("chat", "chat");
      };
      this.#db = await request(opening);
      for (const chat of await request(this.#store("chats").getAll())) this.chats.set(chat.id, chat);
    } catch {
      failed();
    }
    for (const chat of this.chats.values()) if (chat.deleted && !this.undoable(chat)) this.purge(chat.id);
  }

  #store(name, mode) {
    return this.#db.transaction(name, mode).objectStore(name);
  }

  #write(name, work) {
    try {
      const store = this.#db && this.#store(name, "readwrite");
      if (store) store.transaction.onabort = this.failed;
      if (store) work(store);
    } catch {
      this.failed();
    }
  }

  undoable = (chat) => Date.now() - chat.deleted < UNDO_SECONDS * 1000;

  /** What the list shows, the latest first; with a text, only those in whose title or turns it occurs. */
  async list(text = "") {
    const found = [...this.chats.values()].filter((chat) => !chat.deleted).sort((a, b) => b.updated - a.updated);
    const wanted = text.normalize("NFC").toLowerCase().trim();
    if (!wanted) return found;
    const has = (value) => value.toLowerCase().includes(wanted);
    const turns = this.#db ? await request(this.#store("turns").getAll()) : this.#all();
    const hits = new Set(turns.filter((turn) => has(turn.content)).map((turn) => turn.chat));
    return found.filter((chat) => has(chat.title) || hits.has(chat.id));
  }

  #all = () => [...this.#turns.values()].flatMap((turns) => [...turns.values()]);

  async load(id) {
    if (this.#turns.has(id)) return;
    const turns = this.#db ? await request(this.#store("turns").index("chat").getAll(id)) : [];
    if (!this.#turns.has(id)) this.#turns.set(id, new Map(turns.map((turn) => [turn.id, turn])));
  }

  /** Change fields of a conversation, or make it. The disk's other fields, perhaps of another tab, stay. */
  change(id, fields) {
    this.chats.set(id, { id, ...this.chats.get(id), ...fields });
    const whole = this.chats.get(id);
    this.#write("chats", (chats) => {
      chats.get(id).onsuccess = ({ target }) => chats.put({ ...whole, ...target.result, ...fields });
    });
    this.#channel.postMessage({ chat: id, fields: { id, ...fields } });
    return whole;
  }

  /** Keep a turn for this page; `write` also puts it on disk. */
  add(turn) {
    if (!this.#turns.has(turn.chat)) this.#turns.set(turn.chat, new Map());
    this.#turns.get(turn.chat).set(turn.id, turn);
    return turn;
  }

  write(turn, live = false) {
    this.#write("turns", (turns) => turns.put(turn));
    this.#channel.postMessage({ chat: turn.chat, turn: { ...turn, live } });
  }

  forget(turn) {
    this.#turns.get(turn.chat).delete(turn.id);
  }

  purge(id) {
    this.chats.delete(id);
    this.#turns.delete(id);
    this.#write("chats", (chats) => chats.delete(id));
    this.#write("turns", (turns) => {
      turns.index("chat").openKeyCursor(id).onsuccess = ({ target }) => {
        if (!target.result) return;
        turns.delete(target.result.primaryKey);
        target.result.continue();
      };
    });
    this.#channel.postMessage({ chat: id, fields: { gone: true } });
  }

  turns = (id) => [...(this.#turns.get(id)?.values() ?? [])].sort((a, b) => a.created - b.created);
  turn = (chat, id) => this.#turns.get(chat)?.get(id);
  versions = ({ chat, parent }) => this.turns(chat).filter((turn) => turn.parent === parent);

  /** The newest turn below this one, along the newest versions. */
  tip(turn) {
    const below = this.turns(turn.chat).findLast((other) => other.parent === turn.id);
    return below ? this.tip(below) : turn;
  }

  /** The turns from the first to the chosen last one; to the newest where that one was never written. */
  path({ id, leaf }) {
    const path = [];
    let turn = this.turn(id, leaf) ?? this.turns(id).at(-1);
    for (; turn; turn = this.turn(id, turn.parent)) path.unshift(turn);
    return path;
  }

  /** A line of the file that `chatbaker chat` and `chatbaker sft` read, with all the versions beside the messages. */
  async line(chat) {
    await this.load(chat.id);
    const said = this.path(chat).map(({ role, content }) => ({ role, content }));
    if (said.at(-1)?.role === "user") said.pop();
    const messages = chat.system ? [{ role: "system", content: chat.system }, ...said] : said;
    return JSON.stringify({ messages, chat, turns: this.turns(chat.id) });
  }

  /** Take in such a line; whether it held a conversation. What is here already stays as it is. */
  async take(line) {
    let { messages, chat, turns } = JSON.parse(line) ?? {};
    const text = (value) => typeof value === "string";
    const now = Date.now();
    if (!chat || !Array.isArray(turns)) {
      if (!Array.isArray(messages)) return false;
      const system = messages[0]?.role === "system" ? messages.shift().content : "";
      chat = { id: newId(), system };
      turns = messages.map((message, n) => ({ ...message, id: `${chat.id}-${n}`, created: now + n, finish: "stop" }));
      turns.forEach((turn, n) => (turn.parent = turns[n - 1]?.id ?? null));
    }
    const seen = new Set([null]); // a parent comes before its children, so there is no circle
    const good = ({ id, parent, role, content }) =>
      text(id) && text(content) && seen.has(parent) && ["user", "assistant"].includes(role) && seen.add(id);
    if (!text(chat.id) || !turns.length || !turns.every(good)) return false;
    await this.load(chat.id);
    for (const turn of turns) {
      const content = turn.content.normalize("NFC");
      const { id, parent, role, created = now, finish = "stop", usage, cut } = turn;
      if (this.turn(chat.id, id)) continue;
      this.write(this.add({ id, parent, role, content, created, finish, usage, cut, chat: chat.id }));
    }
    if (this.chats.has(chat.id)) return !!this.change(chat.id, { deleted: null });
    const title = text(chat.title) && chat.title ? chat.title : titleOf(turns[0].content);
    const system = text(chat.system) ? chat.system : "";
    return !!this.change(chat.id, { title, system, leaf: chat.leaf ?? null, updated: Number(chat.updated) || now });
  }
}

/** The first line of what was asked. */
export const titleOf = (text) => [...text.trim().split("\n")[0].normalize("NFC")].slice(0, 80).join("");
