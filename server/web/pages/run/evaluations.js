/** Every measured quality, with the identity that says what it may be compared with. */

import { list, path } from "../../api.js";
import { evaluation } from "../../catalog.js";
import { facts, table } from "../../components/table.js";
import { fill, h } from "../../dom.js";
import { ago, duration, exactly, fixed, integer, significant } from "../../format.js";
import { createLoader } from "../../loader.js";

const COLUMNS = [
  { label: "Step", num: true, cell: (e) => h("b", {}, integer(e.step)) },
  { label: "Kind", cell: (e) => [evaluation(e.kind)?.label ?? e.kind, e.best && h("span.tag", { dataset: { tone: "good" } }, "best"), e.superseded && h("span.tag", {}, "superseded")] },
  { label: "Value", num: true, cell: (e) => fixed(e.value, evaluation(e.kind)?.digits ?? 6) },
  { label: "Identity", cell: (e) => h("details.inline", {}, h("summary.mono", {}, e.identity.slice(0, 12)), facts(Object.entries({ ...e.settings, ...flat(e.result) }).map(([k, v]) => [k, said(v)]))) },
  { label: "Took", num: true, cell: (e) => duration(e.seconds) },
  { label: "When", cell: (e) => h("span", { title: exactly(e.unix_seconds) }, ago(e.unix_seconds)) },
];

export function mount(root, run) {
  const refused = h("div");
  const host = h("div");
  fill(root, refused, host);
  const { load, close } = createLoader({ host, refused, ask: () => list(path("runs", run.detail.id, "evaluations")), show });
  load();

  function show(items) {
    items.sort((a, b) => b.step - a.step || b.id - a.id);
    fill(host, table("Evaluations", COLUMNS, items, { empty: "No evaluation yet.", row: (e) => ({ dataset: { superseded: String(e.superseded) } }) }));
  }

  return { unmount: close, onEvent: (event) => event.kind === "evaluation" && load() };
}

/** {tasks: {piqa: 0.3}} -> {"tasks piqa": 0.3} */
function flat(result, prefix = "") {
  return Object.entries(result ?? {}).reduce((all, [key, value]) => {
    const name = `${prefix}${key}`;
    const isDeep = value && typeof value === "object" && !Array.isArray(value);
    return isDeep ? { ...all, ...flat(value, `${name} `) } : { ...all, [name]: value };
  }, {});
}

const said = (value) => (typeof value === "number" ? significant(value, 6) : typeof value === "string" ? value : JSON.stringify(value));
