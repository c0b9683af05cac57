// The page about the API, drawn from /openapi.json: every route, its parameters, an example.

const element = (name, ...children) => {
  const made = document.createElement(name);
  made.append(...children);
  return made;
};

const row = (...cells) => element("tr", ...cells);

function kind(schema, types) {
  if (schema.$ref) return schema.$ref.split("/").pop();
  if (schema.const !== undefined) return JSON.stringify(schema.const);
  if (schema.enum) return schema.enum.map((value) => JSON.stringify(value)).join(" or ");
  if (schema.anyOf) return schema.anyOf.filter((one) => one.type !== "null").map((one) => kind(one, types)).join(" or ");
  if (schema.type === "array") return `list of ${schema.items ? kind(schema.items, types) : "anything"}`;
  return schema.type || "anything";
}

function bounds(schema) {
  const all = [schema, ...(schema.anyOf || [])];
  const names = { minimum: "≥", maximum: "≤", exclusiveMinimum: ">", exclusiveMaximum: "<", minLength: "length ≥", maxLength: "length ≤", minItems: "items ≥", maxItems: "items ≤" };
  return all.flatMap((one) => Object.keys(names).filter((key) => key in one).map((key) => `${names[key]} ${one[key]}`)).join(", ");
}

function table(schema) {
  const head = row(...["name", "type", "bounds", "default"].map((text) => element("th", text)));
  const rows = Object.entries(schema.properties || {}).map(([name, one]) => {
    const fallback = (schema.required || []).includes(name) ? "required" : one.default == null ? "" : JSON.stringify(one.default);
    return row(element("td", element("code", name)), element("td", kind(one)), element("td", bounds(one)), element("td", fallback));
  });
  return element("table", element("thead", head), element("tbody", ...rows));
}

const EXAMPLES = {
  "/v1/chat/completions": { messages: [{ role: "user", content: "안녕하세요?" }], stream: true },
  "/v1/completions": { prompt: "서울은", max_tokens: 16 },
};

async function draw() {
  const main = document.querySelector("main");
  document.querySelector("#base").textContent = `${location.origin}/v1`;
  const api = await (await fetch("/openapi.json")).json();
  const schemas = api.components.schemas;
  for (const [path, methods] of Object.entries(api.paths)) {
    for (const [method, route] of Object.entries(methods)) {
      main.append(element("h2", element("code", `${method.toUpperCase()} ${path}`)));
      const body = route.requestBody && route.requestBody.content["application/json"].schema;
      if (body) main.append(table(schemas[body.$ref.split("/").pop()]));
      const data = EXAMPLES[path] ? ` \\\n  -H 'Content-Type: application/json' \\\n  -d '${JSON.stringify(EXAMPLES[path])}'` : "";
      main.append(element("pre", `curl ${location.origin}${path}${data}`));
    }
  }
  main.append(element("h2", "Parts"));
  for (const [name, schema] of Object.entries(schemas)) {
    if (schema.properties && !/Request$|ValidationError$/.test(name)) main.append(element("h3", element("code", name)), table(schema));
  }
}

draw();
