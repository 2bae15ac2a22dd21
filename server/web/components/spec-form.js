/**
 * The form of a spec. A field left empty is not sent: the preset or the default decides, and the
 * field shows what that is, as the daemon's plan has it.
 */

import { bounds, choices as words, horizons, presets, sourcesOf } from "../catalog.js";
import { fill, h, uid } from "../dom.js";
import { integer } from "../format.js";

const SAID = { // words of the API that want another one on the page
  builtin: "built in", text: "text files", jsonl: "JSON lines", parquet: "Parquet", hf: "Hugging Face",
  nanochat_packed: "nanochat's packed shards", best_fit: "best fit", slurm: "as a job of Slurm",
};

/** [pointer, label, kind, options]; the pointer is the path in the spec. */
const GROUPS = [
  ["Run", [
    ["/name", "Name", "text", { required: true, placeholder: "my-first-run", autocomplete: "off" }],
    ["/title", "Title", "text", { placeholder: "optional" }],
    ["/preset", "Preset", "choice", {}],
    ["/device", "Device", "choice", {}],
    ["/start", "Start immediately", "tick", { checked: true }],
  ]],
  ["Data", [
    ["/data/source", "Source", "choice", {}],
    ["/data/path", "Path on the daemon's machine", "text", { placeholder: "/data/corpus" }],
    ["/data/name", "Dataset", "text", { placeholder: "owner/dataset" }],
    ["/data/config", "Dataset config", "text", { placeholder: "if the dataset has several" }],
    ["/data/split", "Training split", "text", { placeholder: "train" }],
    ["/data/column", "Text column or key", "text", { placeholder: "text" }],
    ["/data/max_shards", "Shards", "number", {}],
    ["/data/packing", "Packing", "choice", {}],
  ]],
  ["Size and horizon", [
    ["/model/depth", "Depth: the one dial", "number", {}],
    ["/model/sequence_len", "Sequence length", "number", {}],
    ["/model/vocab_size", "Vocabulary", "number", {}],
    ["/horizon", "Horizon", "horizon", {}],
    ["/batch/tokens", "Batch, tokens per step", "number", {}],
    ["/batch/device_batch_size", "Rows per forward pass", "number", {}],
  ]],
  ["Several GPUs, or a cluster", [
    ["/gpus", "GPUs", "number", {}],
    ["/place/engine", "Where", "choice", {}],
    ["/place/nodes", "Nodes", "number", {}],
    ["/place/partition", "Partition", "text", { placeholder: "the cluster's default" }],
    ["/place/account", "Account", "text", { placeholder: "yours" }],
    ["/place/qos", "Quality of service", "text", { placeholder: "the account's default" }],
    ["/place/time_limit", "Time limit of a job", "text", { placeholder: "12:00:00" }],
    ["/place/cpus_per_task", "CPU cores per process", "number", {}],
    ["/place/memory", "Memory of a node", "text", { placeholder: "64G" }],
  ], true],
  ["Learning", [
    ["/optimizer/matrix_lr", "Matrix learning rate", "number", {}],
    ["/optimizer/embedding_lr", "Embedding learning rate", "number", {}],
    ["/optimizer/weight_decay", "Weight decay", "number", {}],
    ["/schedule/warmup_steps", "Warmup steps", "number", {}],
    ["/schedule/warmdown_ratio", "Warmdown, share of the horizon", "number", {}],
    ["/schedule/warmdown_shape", "Warmdown shape", "choice", {}],
    ["/schedule/final_lr_frac", "Final learning rate, × peak", "number", {}],
    ["/numerics/seed", "Seed", "number", {}],
  ], true],
  ["Evaluations, checkpoints, recovery", [
    ["/evaluate/bpb_every", "Validate every … steps", "number", {}],
    ["/evaluate/sample_every", "Sample every … steps", "number", {}],
    ["/checkpoint/every_seconds", "Checkpoint every … seconds", "number", {}],
    ["/checkpoint/every_steps", "Checkpoint every … steps", "number", {}],
    ["/checkpoint/keep_last", "Checkpoints to keep", "number", {}],
    ["/checkpoint/keep_every", "Keep one every … steps", "number", {}],
    ["/recovery/on_crash", "After a crash", "choice", {}],
    ["/recovery/on_reboot", "After a reboot", "choice", {}],
    ["/notify", "Notify (URLs, separated by spaces)", "list", { placeholder: "https://…" }],
  ], true],
];

export function createSpecForm(onChange) {
  const fields = [];
  const groups = GROUPS.map(([title, items, folded]) => {
    const inside = h("div.field-grid", {}, items.map((item) => {
      const field = makeField(...item);
      fields.push(field);
      return field.element;
    }));
    return folded ? h("details.card.pad", {}, h("summary", {}, title), inside) : h("section.card.pad", {}, h("h2", {}, title), inside);
  });
  const others = h("p.soft", { hidden: true });
  const element = h("div.stack", { oninput: () => (showFitting(), onChange()) }, groups, others);
  const at = (pointer) => fields.find((field) => field.pointer === pointer);
  let taken = {}; // the spec as it came: what the form does not change stays as it was, key by key
  at("/preset").offer([["", "demo (the default)"], ...Object.keys(presets()).map((name) => [name, name])]);
  at("/device").offer([["", "automatic"]]);
  at("/place/engine").offer([["", "on the daemon's machine"], ...words("spec", "/place/engine").map((word) => [word, SAID[word] ?? word])]);
  take({});

  /** By the source that is chosen, or that the preset chooses. */
  function showFitting() {
    const source = at("/data/source").value() ?? at("/data/source").assumed();
    for (const field of fields) if (field.only) field.element.hidden = !field.only.includes(source);
  }

  function body() {
    const spec = structuredClone(taken);
    for (const field of fields) {
      const value = field.element.hidden && !field.wasHidden ? undefined : field.value();
      if (JSON.stringify(value) === field.untouched) continue;
      if (value === undefined) cut(spec, field.pointer);
      else put(spec, field.pointer, value);
    }
    if (taken.place?.engine && !spec.place?.engine) delete spec.place; // a clone that is to train here
    return spec;
  }

  /** Takes a spec as JSON has it. What has no field is kept and named. @param {any} spec */
  function take(spec) {
    taken = structuredClone(spec);
    for (const field of fields) {
      field.set(valueAt(taken, field.pointer) ?? undefined);
      field.untouched = JSON.stringify(field.value());
    }
    showFitting();
    for (const field of fields) field.wasHidden = field.element.hidden;
    const shown = fields.map((field) => field.pointer);
    const names = Object.keys(flattened(taken)).filter((name) => !shown.some((p) => `/${name.replaceAll(".", "/")}/`.startsWith(`${p}/`)));
    others.hidden = names.length === 0;
    fill(others, "Kept unchanged, without a form field: ", names.map((name, i) => [i ? ", " : "", h("code", {}, name)]));
  }

  /** What the empty fields amount to. @param {any} spec the resolved one @param {any} plan */
  function assume(spec, plan) {
    const reckoned = { "/batch/tokens": plan.batch.tokens, "/batch/device_batch_size": plan.batch.device_batch_size };
    for (const field of fields) {
      const value = valueAt(spec, field.pointer);
      field.assume(value === "auto" && reckoned[field.pointer] ? reckoned[field.pointer] : value);
    }
    showFitting();
  }

  /** @param {any[]} devices of GET /v1/system */
  function offerDevices(devices) {
    at("/device").offer([["", "automatic"], ...devices.map(({ device, name, run }) => [device, `${device}: ${name}${run ? ` (now ${run})` : ""}`])]);
  }

  /** Shows each error at its field; returns those that have none. */
  function showErrors(errors) {
    fields.forEach((field) => field.showError(""));
    return errors.filter(({ pointer, detail }) => {
      const where = pointer.replace(/^#/, "");
      const field = fields.find((f) => !f.element.hidden && (where === f.pointer || where.startsWith(`${f.pointer}/`)));
      field?.showError(detail);
      field?.element.closest("details")?.setAttribute("open", "");
      return !field;
    });
  }

  return { element, body, take, assume, offerDevices, showErrors };
}

function makeField(pointer, label, kind, options) {
  const said = h("span.field-error", { id: uid("error") });
  const [, part, name] = pointer.split("/");
  const only = part === "data" ? sourcesOf(name) : null;
  const control = CONTROLS[kind]({ ...bounds("spec", pointer), ...options }, said.id, only);
  if (kind === "choice") control.offer([["", ""], ...words("spec", pointer).map((word) => [word, SAID[word] ?? word])]);
  const element = kind === "tick"
    ? h("label.tick", {}, control.input, h("span", {}, label), said)
    : h("div.field", {}, h("label", { for: control.input.id }, label), control.element ?? control.input, said);
  let assumed;
  function showError(text) {
    fill(said, text);
    if (text) control.input.setAttribute("aria-invalid", "true");
    else control.input.removeAttribute("aria-invalid");
  }
  function assume(value) {
    assumed = value ?? undefined;
    control.assume?.(value);
  }
  return { ...control, pointer, element, assume, assumed: () => assumed, showError, only, untouched: undefined, wasHidden: false };
}

/**
 * Each has the input, value() (undefined: not said), set(value) and, where there is room for it,
 * assume(value): shows what holds while nothing is said.
 */
const CONTROLS = {
  text(options, described, only) {
    const input = h("input", { type: "text", id: uid("f"), "aria-describedby": described, ...options });
    const assume = (value) => typeof value === "string" && value && only && (input.placeholder = value);
    return { input, value: () => input.value.trim() || undefined, set: (value) => (input.value = value ?? ""), assume };
  },
  list(options, described) {
    const { input } = CONTROLS.text(options, described);
    return { input, value: () => input.value.match(/\S+/g) ?? undefined, set: (value) => (input.value = (value ?? []).join(" ")) };
  },
  number(options, described) {
    const input = h("input", { type: "number", id: uid("f"), step: "any", placeholder: "default", "aria-describedby": described, ...options });
    const value = () => (input.value === "" ? undefined : Number.isNaN(Number(input.value)) ? input.value : Number(input.value));
    const set = (given) => {
      input.type = typeof given === "string" ? "text" : "number"; // "auto", "end"
      input.value = given ?? "";
    };
    const assume = (held) => held !== undefined && (input.placeholder = held === null ? "off" : String(held));
    return { input, value, set, assume };
  },
  choice(_, described) {
    const input = h("select", { id: uid("f"), "aria-describedby": described });
    const set = (value) => {
      if (value && ![...input.options].some((option) => option.value === value)) input.append(h("option", { value }, value));
      input.value = value ?? "";
    };
    const offer = (choices) => {
      const chosen = input.value;
      fill(input, choices.map(([value, text]) => h("option", { value }, text)));
      set(chosen);
    };
    const assume = (held) => {
      const first = input.options[0];
      const text = [...input.options].find((option) => option.value === held)?.text ?? held;
      if (!first.text.includes("automatic") && !first.text.includes("default)")) first.text = text ? `${text} (preset)` : "";
    };
    return { input, value: () => input.value || undefined, set, offer, assume };
  },
  tick({ checked }, described) {
    const input = h("input", { type: "checkbox", id: uid("f"), checked, "aria-describedby": described });
    return { input, value: () => (input.checked === checked ? undefined : input.checked), set: (value) => (input.checked = value ?? checked) };
  },
  horizon(_, described) {
    const preset = h("option", { value: "" }, "as preset");
    const unit = h("select", { id: uid("f") }, preset, horizons().map(([value, text]) => h("option", { value }, text)));
    const input = h("input", { type: "number", step: "any", "aria-label": "How much", disabled: true, "aria-describedby": described });
    const only = (horizon) => Object.entries(horizon ?? {}).find(([, v]) => v !== null && v !== undefined) ?? ["", ""];
    unit.addEventListener("change", () => (input.disabled = unit.value === ""));
    const value = () => (unit.value && input.value !== "" ? { [unit.value]: Number(input.value) } : undefined);
    const set = (given) => {
      const [key, amount] = only(given);
      unit.value = key;
      input.value = amount;
      input.disabled = key === "";
    };
    const assume = (held) => {
      const [key, amount] = only(held);
      if (unit.value === "" && key) preset.text = `${integer(amount)} ${horizons().find(([value]) => value === key)[1]} (preset)`;
    };
    return { input: unit, element: h("div.field-row", {}, unit, input), value, set, assume };
  },
};

function valueAt(spec, pointer) {
  return pointer.slice(1).split("/").reduce((part, key) => part?.[key], spec);
}

/** Takes the value out of the spec; parts that are empty then go too. */
function cut(target, pointer) {
  const keys = pointer.slice(1).split("/");
  const parents = [];
  for (const key of keys.slice(0, -1)) {
    parents.push([target, key]);
    target = target?.[key];
  }
  if (target) delete target[keys.at(-1)];
  for (const [parent, key] of parents.reverse()) {
    if (parent?.[key] && Object.keys(parent[key]).length === 0) delete parent[key];
  }
}

function flattened(value, prefix = "") {
  return Object.entries(value ?? {}).reduce((all, [key, inner]) => {
    const isDeep = inner && typeof inner === "object" && !Array.isArray(inner);
    return { ...all, ...(isDeep ? flattened(inner, `${prefix}${key}.`) : { [`${prefix}${key}`]: inner }) };
  }, {});
}

/** put({}, "/model/depth", 4) -> {model: {depth: 4}} */
function put(target, pointer, value) {
  if (value === undefined) return;
  const keys = pointer.slice(1).split("/");
  const last = keys.pop();
  for (const key of keys) target = target[key] ??= {};
  target[last] = value;
}
