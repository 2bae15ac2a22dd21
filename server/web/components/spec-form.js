/** The form of a spec. A field left empty is not sent: the preset or the default decides. */

import { fill, h, uid } from "../dom.js";

/** As trainer/contract/spec/presets.py has them. */
export const PRESETS = ["demo", "rtx4070-d12", "nanochat-d12", "nanochat-d20"];
const SOURCES = [["", "from the preset"], ["builtin", "built in"], ["text", "text files"], ["jsonl", "JSON lines"], ["parquet", "Parquet"], ["hf", "Hugging Face"], ["nanochat_packed", "nanochat's packed shards"]];
const HORIZONS = [["", "as preset"], ["steps", "steps"], ["tokens", "tokens"], ["flops", "FLOP"], ["data_param_ratio", "tokens per parameter"]];

/** [pointer, label, kind, options]; the pointer is the path in the spec. */
const GROUPS = [
  ["Run", [
    ["/name", "Name", "text", { required: true, maxlength: 64, placeholder: "my-first-run", autocomplete: "off" }],
    ["/title", "Title", "text", { maxlength: 300, placeholder: "optional" }],
    ["/preset", "Preset", "choice", { choices: PRESETS.map((name) => [name, name]) }],
    ["/device", "Device", "choice", { choices: [["", "automatic"], ["cpu", "cpu"], ["cuda:0", "cuda:0"], ["mps", "mps"]] }],
    ["/start", "Start at once", "tick", { checked: true }],
  ]],
  ["Data", [
    ["/data/source", "Source", "choice", { choices: SOURCES }],
    ["/data/path", "Path on the daemon's machine", "text", { placeholder: "/data/corpus", only: ["text", "jsonl", "parquet", "nanochat_packed"] }],
    ["/data/name", "Dataset", "text", { placeholder: "owner/dataset", only: ["hf"] }],
    ["/data/config", "Config, where there are several", "text", { placeholder: "asked for when needed", maxlength: 256, only: ["text", "jsonl", "parquet", "hf"] }],
    ["/data/split", "Split to train on", "text", { placeholder: "train", maxlength: 256, only: ["text", "jsonl", "parquet", "hf"] }],
    ["/data/column", "Column or key of the text", "text", { placeholder: "text", maxlength: 256, only: ["jsonl", "parquet", "hf"] }],
    ["/data/max_shards", "Shards", "number", { min: 1, only: ["hf"] }],
    ["/data/packing", "Packing", "choice", { choices: [["", "best fit"], ["lossless", "lossless"]] }],
  ]],
  ["Size and horizon", [
    ["/model/depth", "Depth: the one dial", "number", { min: 1, max: 128 }],
    ["/model/sequence_len", "Sequence length", "number", { min: 16 }],
    ["/model/vocab_size", "Vocabulary", "number", { min: 265 }],
    ["/horizon", "Horizon", "horizon", {}],
    ["/batch/tokens", "Batch, tokens per step", "number", { min: 1 }],
    ["/batch/device_batch_size", "Rows per forward pass", "number", { min: 1 }],
  ]],
  ["Learning", [
    ["/optimizer/matrix_lr", "Matrix learning rate", "number", { step: "any" }],
    ["/optimizer/embedding_lr", "Embedding learning rate", "number", { step: "any" }],
    ["/optimizer/weight_decay", "Weight decay", "number", { step: "any", min: 0 }],
    ["/schedule/warmup_steps", "Warmup steps", "number", { min: 0 }],
    ["/schedule/warmdown_ratio", "Warmdown, share of the horizon", "number", { step: "any", min: 0, max: 1 }],
    ["/schedule/warmdown_shape", "Warmdown shape", "choice", { choices: [["", "from the preset"], ["linear", "linear"], ["cosine", "cosine"]] }],
    ["/schedule/final_lr_frac", "Final learning rate, × peak", "number", { step: "any", min: 0, max: 1 }],
    ["/numerics/seed", "Seed", "number", { min: 0 }],
  ], true],
  ["Evaluations, checkpoints, recovery", [
    ["/evaluate/bpb_every", "Validate every … steps", "number", { min: 1 }],
    ["/evaluate/sample_every", "Sample every … steps", "number", { min: 1 }],
    ["/checkpoint/every_seconds", "Checkpoint every … seconds", "number", { min: 1, step: "any" }],
    ["/checkpoint/every_steps", "Checkpoint every … steps", "number", { min: 1 }],
    ["/checkpoint/keep_last", "Keep the last", "number", { min: 2 }],
    ["/checkpoint/keep_every", "Keep one every … steps", "number", { min: 1 }],
    ["/recovery/on_crash", "After a crash", "choice", { choices: [["", "restart"], ["stop", "stop"]] }],
    ["/recovery/on_reboot", "After a reboot", "choice", { choices: [["", "resume"], ["wait", "wait"]] }],
    ["/notify", "Notify (addresses, with spaces between)", "list", { placeholder: "https://…" }],
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
  let kept = {}; // what was said in JSON and has no field here: it stays part of the spec
  showFitting();

  function showFitting() {
    const source = fields.find((f) => f.pointer === "/data/source").value();
    for (const field of fields) if (field.only) field.element.hidden = !field.only.includes(source);
  }

  function body() {
    const spec = structuredClone(kept);
    for (const field of fields) {
      if (!field.element.hidden) put(spec, field.pointer, field.value());
    }
    return spec;
  }

  /** Takes a spec as JSON has it. What has no field is kept and named. @param {any} spec */
  function take(spec) {
    kept = structuredClone(spec);
    for (const field of fields) field.set(cut(kept, field.pointer));
    showFitting();
    const names = Object.keys(flattened(kept));
    others.hidden = names.length === 0;
    fill(others, "Kept as they are, with no field here: ", names.map((name, i) => [i ? ", " : "", h("code", {}, name)]));
  }

  /** Shows each error at its field; returns those that have none. */
  function showErrors(errors) {
    fields.forEach((field) => field.showError(""));
    return errors.filter(({ pointer, detail }) => {
      const at = pointer.replace(/^#/, "");
      const field = fields.find((f) => !f.element.hidden && (at === f.pointer || at.startsWith(`${f.pointer}/`)));
      field?.showError(detail);
      field?.element.closest("details")?.setAttribute("open", "");
      return !field;
    });
  }

  return { element, body, take, showErrors };
}

function makeField(pointer, label, kind, options) {
  const said = h("span.field-error", { id: uid("error") });
  const control = CONTROLS[kind](options, said.id);
  const element = kind === "tick"
    ? h("label.tick", {}, control.input, h("span", {}, label), said)
    : h("div.field", {}, h("label", { for: control.input.id }, label), control.element ?? control.input, said);
  function showError(text) {
    fill(said, text);
    if (text) control.input.setAttribute("aria-invalid", "true");
    else control.input.removeAttribute("aria-invalid");
  }
  return { pointer, element, value: control.value, set: control.set, showError, only: options.only };
}

const CONTROLS = {
  text(options, described) {
    const input = h("input", { type: "text", id: uid("f"), "aria-describedby": described, ...attributes(options) });
    return { input, value: () => input.value.trim() || undefined, set: (value) => (input.value = value ?? "") };
  },
  list(options, described) {
    const { input } = CONTROLS.text(options, described);
    return { input, value: () => input.value.match(/\S+/g) ?? undefined, set: (value) => (input.value = (value ?? []).join(" ")) };
  },
  number(options, described) {
    const input = h("input", { type: "number", id: uid("f"), step: 1, placeholder: "default", "aria-describedby": described, ...attributes(options) });
    const value = () => (input.value === "" ? undefined : input.value === "auto" ? "auto" : Number(input.value));
    const set = (given) => {
      input.type = typeof given === "string" ? "text" : "number"; // "auto"
      input.value = given ?? "";
    };
    return { input, value, set };
  },
  choice({ choices }, described) {
    const input = h("select", { id: uid("f"), "aria-describedby": described }, choices.map(([value, text]) => h("option", { value }, text)));
    const set = (value) => {
      if (value && ![...input.options].some((option) => option.value === value)) input.append(h("option", { value }, value));
      input.value = value ?? choices[0][0];
    };
    return { input, value: () => input.value || undefined, set };
  },
  tick({ checked }, described) {
    const input = h("input", { type: "checkbox", id: uid("f"), checked, "aria-describedby": described });
    return { input, value: () => (input.checked === checked ? undefined : input.checked), set: (value) => (input.checked = value ?? checked) };
  },
  horizon(_, described) {
    const unit = h("select", { id: uid("f") }, HORIZONS.map(([value, text]) => h("option", { value }, text)));
    const input = h("input", { type: "number", min: 0, step: "any", "aria-label": "How much", disabled: true, "aria-describedby": described });
    unit.addEventListener("change", () => (input.disabled = unit.value === ""));
    const value = () => (unit.value && input.value !== "" ? { [unit.value]: Number(input.value) } : undefined);
    const set = (given) => {
      const [key, amount] = Object.entries(given ?? {}).find(([, v]) => v !== null && v !== undefined) ?? ["", ""];
      unit.value = key;
      input.value = amount;
      input.disabled = key === "";
    };
    return { input: unit, element: h("div.field-row", {}, unit, input), value, set };
  },
};

function attributes({ only, choices, ...rest }) {
  return rest;
}

/** Takes the value out of the spec; parts that are empty then go too. */
function cut(target, pointer) {
  const keys = pointer.slice(1).split("/");
  const parents = [];
  for (const key of keys.slice(0, -1)) {
    parents.push([target, key]);
    target = target?.[key];
  }
  const last = keys.at(-1);
  const value = target?.[last];
  if (target && last in target) delete target[last];
  for (const [parent, key] of parents.reverse()) {
    if (parent?.[key] && Object.keys(parent[key]).length === 0) delete parent[key];
  }
  return value === null ? undefined : value;
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
