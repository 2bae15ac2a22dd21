/** Shows the daemon's own OpenAPI document; nothing comes from elsewhere. */

import { fill, h } from "./dom.js";

const DEPTH = 4; // levels of a schema that are shown

const main = document.getElementById("main");

function show(api) {
  const operations = Object.entries(api.paths).flatMap(([path, methods]) =>
    Object.entries(methods).map(([method, said]) => ({ path, method, said, node: null })));
  const search = h("input", { type: "search", placeholder: "Find an endpoint", "aria-label": "Find an endpoint" });
  search.addEventListener("input", () => {
    const wanted = search.value.toLowerCase();
    for (const { path, method, said, node } of operations) {
      node.hidden = !`${method} ${path} ${said.summary} ${said.description ?? ""}`.toLowerCase().includes(wanted);
    }
  });
  fill(main, h("h1", {}, `${api.info.title} ${api.info.version}`), h("p", {}, api.info.description),
    h("p", {}, h("a", { href: "openapi.json" }, "openapi.json"), " · ", h("a", { href: "." }, "dashboard")), search,
    api.tags.map((tag) => [h("h2", {}, tag.name), h("p.what", {}, tag.description),
      operations.filter(({ said }) => said.tags?.includes(tag.name))
        .map((operation) => (operation.node = card(operation, api)))]));
}

function card({ path, method, said }, api) {
  const body = said.requestBody?.content?.["application/json"];
  return h("details", { id: said.operationId },
    h("summary", {}, h(`span.method.${method}`, {}, method.toUpperCase()), h("span.path", {}, path),
      h("span.what", {}, marked(said.summary))),
    said.description && h("p", {}, marked(said.description)),
    parameters(said.parameters ?? []),
    body && [h("h3", {}, "Body"), fields(body.schema, api)],
    h("h3", {}, "Answers"),
    table(["Status", "Meaning", "Content"], Object.entries(said.responses).map(([status, answer]) =>
      [status, answer.description, Object.entries(answer.content ?? {}).map(([type, { schema }]) =>
        h("div", {}, `${type} ${nameOf(schema)}`))])),
    Object.entries(said.responses).filter(([status]) => status < 300).slice(0, 1).map(([, answer]) =>
      answer.content?.["application/json"] && [h("h3", {}, "Fields"), fields(answer.content["application/json"].schema, api)]),
    h("h3", {}, "curl"), h("pre", {}, curl(path, method, body)));
}

function parameters(given) {
  if (!given.length) return null;
  return [h("h3", {}, "Parameters"), table(["Name", "Where", "Type", ""], given.map((p) =>
    [h("code", {}, p.name), p.in, typeOf(p.schema), marked(p.description)]))];
}

function fields(schema, api, prefix = "", depth = 0) {
  const rows = [];
  collect(schema, api, prefix, depth, rows);
  return rows.length ? table(["Field", "Type", ""], rows) : h("p", {}, typeOf(schema));
}

function collect(schema, api, prefix, depth, rows) {
  const whole = resolve(schema, api);
  if (depth > DEPTH || !whole) return;
  for (const one of whole.oneOf ?? []) collect(one, api, prefix, depth, rows);
  for (const [name, field] of Object.entries(whole.properties ?? {})) {
    const required = whole.required?.includes(name) ? "required" : "";
    rows.push([h("code", {}, prefix + name), typeOf(field), marked([field.description, required].filter(Boolean).join(" "))]);
    const inner = resolve(field.items ?? field.anyOf?.find((s) => s.$ref || s.items?.$ref) ?? field, api);
    if (inner?.properties) collect(inner, api, `${prefix}${name}${field.items ? "[]" : ""}.`, depth + 1, rows);
  }
}

const resolve = (schema, api) =>
  schema?.$ref ? api.components.schemas[schema.$ref.split("/").pop()] : schema;

const nameOf = (schema) => schema?.$ref?.split("/").pop() ?? schema?.title ?? "";

function typeOf(schema = {}) {
  if (schema.$ref) return nameOf(schema);
  if (schema.anyOf ?? schema.oneOf) return (schema.anyOf ?? schema.oneOf).map(typeOf).join(" | ");
  if (schema.const !== undefined) return JSON.stringify(schema.const);
  if (schema.enum) return schema.enum.map((v) => JSON.stringify(v)).join(" | ");
  if (schema.type === "array") return `[${typeOf(schema.items ?? {})}]`;
  const from = schema.minimum ?? schema.exclusiveMinimum;
  const to = schema.maximum ?? schema.exclusiveMaximum;
  return (schema.type ?? "any") + (from !== undefined || to !== undefined ? ` ${from ?? ""}…${to ?? ""}` : "");
}

function table(heads, rows) {
  return h("table", {}, h("thead", {}, h("tr", {}, heads.map((text) => h("th", {}, text)))),
    h("tbody", {}, rows.map((row) => h("tr", {}, row.map((cell) => h("td", {}, cell))))));
}

function curl(path, method, body) {
  const data = body ? ` \\\n  -H 'Content-Type: application/json' -d '${JSON.stringify(body.example ?? {})}'` : "";
  const verb = method === "get" ? "" : `-X ${method.toUpperCase()} `;
  return `curl ${verb}${location.origin}${path.replaceAll("{run}", "demo")}${data}`;
}

/** What stands between backticks is code. */
const marked = (text) => (text ?? "").split("`").map((part, i) => (i % 2 ? h("code", {}, part) : part));

const response = await fetch("openapi.json", { cache: "no-store" });
if (response.ok) show(await response.json());
else fill(main, h("p", {}, "The document needs a token: sign in at ", h("a", { href: "." }, "the dashboard"), " first."));
