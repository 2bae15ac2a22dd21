/** A new run: a form, or JSON, with the plan beside it while one types. */

import { ask, get, path, post } from "../api.js";
import { menuButton } from "../components/menu.js";
import { bars, planSummary, planTables } from "../components/plan-view.js";
import { createSpecForm } from "../components/spec-form.js";
import { problemBox } from "../components/problem.js";
import { segmented } from "../components/segmented.js";
import { makeAxis } from "../charts/axis.js";
import { createChart } from "../charts/chart.js";
import { fill, h } from "../dom.js";
import { bytes, fixed, significant } from "../format.js";
import { createLoader } from "../loader.js";
import { toast } from "../components/toast.js";
import { go } from "../router.js";
import { asCurl, asYaml } from "../spec-text.js";

const DEBOUNCE_MILLISECONDS = 250;

export async function mount(root, place) {
  const form = createSpecForm(changed);
  const json = h("textarea.mono", { rows: 26, spellcheck: "false", "aria-label": "The spec as JSON", oninput: changed });
  const jsonBox = h("div.card.pad", { hidden: true }, h("p.soft", {}, "The body of ", h("code", {}, "POST /v1/runs"), ". Unknown keys are errors."), json);
  const refused = h("div");
  const plan = createPlanPane();
  const create = h("button.primary.large", { type: "submit" }, "Create and start");
  const kinds = segmented("How to write it", [["form", "Form"], ["json", "JSON"]], "form", setKind);
  let isJson = false;
  let timer = 0;

  const devices = get("v1/system").then((system) => form.offerDevices(system.devices), () => null); // without them "automatic" is left
  if (place.query.from) form.take(await cloned(place.query.from));
  await devices;
  fill(root,
    h("div.page-head", {}, h("h1", { tabindex: -1 }, "New run"), h("span.spring"),
      menuButton("Copy this spec", () => [
        { text: "Copy as curl", onclick: () => copy(asCurl) },
        { text: "Copy as YAML", onclick: () => copy(asYaml) },
      ], { text: "Copy", class: "tool" }).element, kinds),
    h("form.create", { onsubmit: submit, novalidate: true },
      h("div.stack", {}, form.element, jsonBox),
      h("aside.plan-pane", { "aria-label": "Plan" }, plan.element, refused, h("div.row", {}, create,
        h("span.soft", {}, "Nothing is downloaded or trained until you create the run.")))));
  const { load: look, close } = createLoader({ host: plan.element, refused, refuse, ask: askPlan, show: showPlan });
  look();

  function setKind(kind) {
    const wasJson = isJson;
    isJson = kind === "json";
    if (isJson) json.value = JSON.stringify(form.body(), null, 2);
    else if (wasJson && !takeJson()) return;
    form.element.hidden = isJson;
    jsonBox.hidden = !isJson;
    changed();
  }

  /** Back to the form, with all that the text says. False: it is not JSON, so the text stays. */
  function takeJson() {
    try {
      form.take(JSON.parse(json.value));
      return true;
    } catch (problem) {
      isJson = true;
      kinds.querySelector("input[value=json]").checked = true;
      refuse(problem);
      return false;
    }
  }

  async function copy(write) {
    await navigator.clipboard?.writeText(write(body()));
    toast("Copied.");
  }

  function body() {
    return isJson ? JSON.parse(json.value) : form.body();
  }

  function changed() {
    clearTimeout(timer);
    timer = setTimeout(look, DEBOUNCE_MILLISECONDS);
  }

  async function askPlan() {
    const spec = body();
    create.textContent = spec.start === false ? "Create" : "Create and start";
    return ask("v1/plan", { ...spec, name: spec.name || "unnamed" });
  }

  function showPlan(answer) {
    form.showErrors([]);
    if (!isJson) form.assume(answer.spec, answer.plan);
    plan.show(answer.plan, answer.planned);
  }

  /** Errors go to their fields; what has no field stays below the plan. */
  function refuse(problem) {
    const rest = isJson ? problem.errors ?? [] : form.showErrors(problem.errors ?? []);
    const isShownAtFields = !isJson && problem.errors?.length > 0 && rest.length === 0;
    const said = problem instanceof SyntaxError ? { title: "Not JSON yet", detail: problem.message } : problem;
    fill(refused, !isShownAtFields && problemBox({ ...said, title: said.title, detail: said.detail, hint: said.hint, errors: rest }));
    plan.dim();
  }

  async function submit(event) {
    event.preventDefault();
    create.disabled = true;
    try {
      const made = await post("v1/runs", body());
      go(["runs", made.name]);
    } catch (problem) {
      refuse(problem);
      form.element.querySelector("[aria-invalid=true]")?.focus();
    }
    create.disabled = false;
  }

  return { unmount: () => (clearTimeout(timer), close(), plan.destroy()) };
}

/** The spec of a run under a name of its own. */
async function cloned(name) {
  const { spec } = await get(path("runs", name));
  const { start, ...rest } = spec; // with its nulls: left out they would be the preset's values again
  return { ...rest, name: `${name}-copy`.slice(0, 64) };
}

function createPlanPane() {
  const chart = createChart({ title: "Learning rate, planned", note: "× peak", height: 150, format: (v) => fixed(v, 3) });
  const summary = h("div.plan-summary");
  const memory = h("div");
  const warnings = h("ul.warnings", { "aria-live": "polite" });
  const all = h("div");
  const element = h("div.stack", {}, summary, warnings, memory, chart.element,
    h("details", {}, h("summary", {}, "The whole plan"), all));
  const axis = makeAxis("step", { tokensPerStep: 1, flopsPerToken: 1 });

  function show(plan, planned) {
    element.classList.remove("stale");
    fill(summary, planSummary(plan));
    fill(warnings, plan.warnings.map((text) => h("li", {}, text)));
    fill(memory, memoryBar(plan.memory));
    fill(all, planTables(plan));
    chart.show({
      x: planned.steps, range: [0, plan.horizon.steps], axis, yRange: [0, 1.08],
      lines: [{ label: "multiplier", colour: "line-1", values: planned.lr_multiplier, width: 2 }],
      edges: [{ x: plan.warmdown_start, tone: "ink-3", label: "warmdown" }],
    });
  }

  return { element, show, dim: () => element.classList.add("stale"), destroy: chart.destroy };
}

const MEMORY = ["weights", "gradients", "optimizer", "activations", "logits", "overhead"];

function memoryBar(memory) {
  return h("section.card.pad", {}, h("h3", {}, "Device memory by part"), bars(memory, MEMORY),
    h("ul.key-list", {}, MEMORY.map((key, i) =>
      h("li", {}, h("i.key", { style: { "--key": `var(--line-${i + 1})` } }), key, " ", h("b", {}, bytes(memory[key]))))));
}
