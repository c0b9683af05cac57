// Code in colours: comments, strings, keywords, numbers and calls, by one pattern per family of languages. No parsing.

const patterns = new Map();
for (const { names, comment, string, keyword, flags = "" } of await (await fetch("languages.json")).json()) {
  const kinds = { comment, string, keyword, number: String.raw`\b\d[\w.]*`, call: String.raw`\b[\p{L}_]\w*(?=\()` };
  const source = Object.entries(kinds).map(([kind, part]) => `(?<${kind}>${part})`).join("|");
  for (const name of names.split(" ")) patterns.set(name, new RegExp(source, `gmu${flags}`));
}

/** Nodes: spans of these classes, and the plain text between them. */
export function highlight(text, name) {
  const nodes = [];
  let last = 0;
  for (const { index, 0: token, groups } of patterns.has(name) ? text.matchAll(patterns.get(name)) : []) {
    const span = document.createElement("span");
    span.className = Object.keys(groups).find((kind) => groups[kind] !== undefined);
    span.textContent = token;
    nodes.push(text.slice(last, index), span);
    last = index + token.length;
  }
  return [...nodes, text.slice(last)];
}
