/** Groups: one spec and its variations as runs; all of them, a new one, and each on its own page. */

import { get, post } from "../api.js";
import { bounds, bpb, presets } from "../catalog.js";
import { problemBox } from "../components/problem.js";
import { choice } from "../components/resume-dialog.js";
import { segmented } from "../components/segmented.js";
import { table } from "../components/table.js";
import { fill, h, setText, userText } from "../dom.js";
import { ago, duration, energy, exactly, integer } from "../format.js";
import { bodyOf, countsOf, numMembers, problemsOf } from "../group-text.js";
import { createLoader } from "../loader.js";
import { go, link } from "../router.js";
import * as group from "./group.js";

const EVERY_MILLISECONDS = 5_000;
const MOST = 100;

export function mount(root, place) {
  if (place.parts[1]) return group.mount(root, place.parts[1], place.query);
  const [refused, host] = [h("div"), h("div")];
  const form = newGroup();
  fill(root, h("div.page-head", {}, h("h1", { tabindex: -1 }, "Groups")), refused, host, form);
  const { load, close } = createLoader({ host, refused, ask: () => get("v1/groups", { limit: MOST }), show });
  const timer = setInterval(() => !document.hidden && load(), EVERY_MILLISECONDS);
  load();

  function show({ data, has_more: more }) {
    form.open ||= data.length === 0;
    fill(host, table("Groups", COLUMNS, data, { empty: "No groups yet. A group compares a ladder of depths, a grid of settings or repeats with other seeds." }),
      more && h("p.soft.note-line", {}, `The newest ${MOST}; GET /v1/groups has the others.`));
  }

  return { unmount: () => (clearInterval(timer), close()) };
}

const COLUMNS = [
  { label: "Group", cell: (g) => [h("a.run-name", { href: link(["groups", g.name]) }, userText(g.name)), g.title && h("small.clip", { title: g.title }, userText(g.title))] },
  { label: "Runs", num: true, cell: (g) => integer(g.num_members) },
  { label: "State", cell: (g) => countsOf(g.counts) },
  { label: "Best val bpb", num: true, cell: (g) => bpb(g.best_val_bpb) },
  { label: "Trained", num: true, cell: (g) => duration(g.training_seconds) },
  { label: "Energy", num: true, cell: (g) => energy(g.energy_joules) },
  { label: "Created", cell: (g) => h("span", { title: exactly(g.created_at) }, ago(g.created_at)) },
];

function newGroup() {
  const name = h("input", { type: "text", required: true, ...bounds("group", "/name"), placeholder: "ladder", autocomplete: "off" });
  const preset = choice([["", "demo (the default)"], ...Object.keys(presets()).map((one) => [one, one])]);
  const base = h("textarea.mono", { rows: 4, placeholder: '{"horizon": {"data_param_ratio": 10}}' });
  const depths = h("input", { type: "text", placeholder: "4 6 8 10" });
  const grid = h("textarea.mono", { rows: 3, placeholder: "optimizer.matrix_lr: 0.01 0.02\nschedule.warmdown_ratio: 0.2 0.5" });
  const number = (rest) => h("input", { type: "number", step: "any", placeholder: "no limit", ...rest });
  const repeats = number({ ...bounds("group", "/repeats"), placeholder: "1" });
  const limit = (key) => number(bounds("group", `/budget/${key}`));
  const budget = { minutes: limit("minutes"), tokens: limit("tokens"), kwh: limit("kwh") };
  const json = h("textarea.mono", { rows: 16, spellcheck: "false", "aria-label": "The group as JSON" });
  const count = h("span.soft", { role: "status" });
  const refused = h("div");
  const field = (label, input) => h("label.field", {}, h("span", {}, label), input);
  const fields = h("div.stack", {},
    h("div.field-grid", {}, field("Name", name), field("Preset", preset), field("Depths of the ladder", depths), field("Seeds per variant", repeats),
      field("Minutes per run", budget.minutes), field("Tokens per run", budget.tokens), field("kWh per run", budget.kwh)),
    field("Grid: one field per line with its values; the first value of each is the baseline", grid),
    field("More of the base spec, as JSON", base));
  const written = h("div.stack", { hidden: true }, h("p.soft", {}, "The body of ", h("code", {}, "POST /v1/groups"), ". Unknown keys are errors."), json);
  let isJson = false;
  const kinds = segmented("How to write it", [["form", "Form"], ["json", "JSON"]], "form", (kind) => {
    if (kind === "json") json.value = JSON.stringify(formBody(), null, 2);
    isJson = kind === "json";
    fields.hidden = isJson;
    written.hidden = !isJson;
    changed();
  });
  const element = h("details.card.pad.new-group", {}, h("summary", {}, "New group"),
    h("form.stack", { onsubmit: submit, oninput: changed }, h("div.row", {}, kinds), fields, written, refused,
      h("div.row", {}, h("button.primary", { type: "submit" }, "Create the group"), count)));
  changed();
  return element;

  function formBody() {
    return bodyOf({
      name: name.value, preset: preset.value, base: base.value, depths: depths.value, grid: grid.value, repeats: repeats.value,
      budget: Object.fromEntries(Object.entries(budget).map(([key, input]) => [key, input.value])),
    });
  }

  function changed() {
    try {
      const runs = numMembers(isJson ? JSON.parse(json.value) : formBody());
      setText(count, `${integer(runs)} ${runs === 1 ? "run" : "runs"}, queued at low priority`);
    } catch (problem) {
      setText(count, problem.message);
    }
  }

  async function submit(event) {
    event.preventDefault();
    try {
      const made = await post("v1/groups", isJson ? JSON.parse(json.value) : formBody());
      go(["groups", made.name]);
    } catch (problem) {
      fill(refused, problemBox(problem instanceof SyntaxError || problem instanceof RangeError ? problemsOf(problem) : problem));
    }
  }
}
