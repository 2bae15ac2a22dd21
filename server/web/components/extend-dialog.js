/**
 * Extend a run: say how far and by which curve, see what the joint does, then agree.
 * The preview is the daemon's own answer to the same request with dry_run.
 */

import { ask, list, path, post } from "../api.js";
import { choices } from "../catalog.js";
import { fill, h } from "../dom.js";
import { integer } from "../format.js";
import { createLoader } from "../loader.js";
import { choice } from "./resume-dialog.js";
import { openDialog } from "./dialog.js";
import { createPreview } from "./extend-preview.js";
import { problemBox } from "./problem.js";

const DEBOUNCE_MILLISECONDS = 220;

/** What each mode of the catalog means, and which of the schedule's fields it reads. */
const MODES = {
  replan: ["Recomputes the whole curve over the longer horizon.", ["rewarm_steps", "warmdown_ratio", "shape", "final_lr_frac"]],
  hold: ["Keeps the current learning rate.", []],
  rewarm: ["Warms up again, stays there, then decays.", ["peak_frac", "rewarm_steps", "decay_ratio", "shape", "final_lr_frac"]],
  decay: ["Anneals from here to the final learning rate.", ["decay_ratio", "shape", "final_lr_frac"]],
};
const NUMBERS = {
  rewarm_steps: ["Rewarm steps", { min: 0, step: 1 }],
  peak_frac: ["Peak, × planned peak", { min: 0.01, max: 10, step: "any" }],
  decay_ratio: ["Decay, share of the phase", { min: 0, max: 1, step: "any" }],
  warmdown_ratio: ["Warmdown, share of the horizon", { min: 0, max: 1, step: "any" }],
  final_lr_frac: ["Final learning rate, × peak", { min: 0, max: 1, step: "any" }],
};

/** @param {import("../pages/run.js").RunContext} run @returns {Promise<any>} what the daemon answered */
export async function openExtend(run) {
  const loaders = [];
  const answer = await openDialog(`Extend ${run.detail.name}`, (close) => extendForm(run, close, loaders), { wide: true });
  loaders.forEach((loader) => loader.close());
  return answer;
}

function extendForm(run, close, loaders) {
  const preview = createPreview(run);
  const refused = h("div");
  const agree = h("button.primary", { type: "submit", disabled: true }, "Extend");
  const unit = choice([["to_step", "to step"], ["add_steps", "by steps"], ["add_tokens", "by tokens"]], "to_step");
  const amount = h("input", { type: "number", min: 1, step: 1, required: true, value: suggested("to_step"), "aria-label": "How far" });
  const at = choice([["end", "after the current phase"], ["now", "now, at the next step"]], "end");
  const from = choice([["", "the newest step"]]);
  const name = h("input", { type: "text", maxlength: 64, autocomplete: "off", placeholder: "automatic" });
  const modes = choices("extend", "/schedule/mode").map((mode) => modeCard(mode, of(mode)[0]));
  const numbers = Object.entries(NUMBERS).map(([key, [label, attributes]]) => {
    const input = h("input", { type: "number", placeholder: "default", ...attributes });
    return { key, input, element: h("label.field", {}, h("span", {}, label), input) };
  });
  const shape = choice([["", "as before"], ...choices("extend", "/schedule/shape").map((word) => [word, word])]);
  const shapeField = h("label.field", {}, h("span", {}, "Shape of the decay"), shape);
  const keep = h("input", { type: "checkbox" });
  const keepField = h("label.tick", {}, keep, h("span", {}, "Keep weight decay at its value at the joint"));
  const look = createLoader({ host: preview.element, refused, ask: askPreview, show });
  const checkpoints = createLoader({ host: from, refused, ask: () => list(path("runs", run.detail.id, "checkpoints")), show: offer });
  loaders.push(look, checkpoints);
  let mode = "replan";
  let timer = 0;

  const form = h("form.dialog-body.extend", { onsubmit: submit, oninput: changed },
    h("div.extend-ask", {},
      h("div.field-row", {}, h("label.field", {}, h("span", {}, "Extend"), unit), h("label.field.grow", {}, h("span.visually-hidden", {}, "Amount"), amount)),
      h("fieldset.mode-cards", {}, h("legend.label", {}, "Curve"), modes),
      h("div.field-grid", {}, numbers.map((n) => n.element), shapeField),
      keepField,
      h("details", {}, h("summary", {}, "Starting point and name"),
        h("div.field-grid", {},
          h("label.field", {}, h("span", {}, "Begins"), at),
          h("label.field", {}, h("span", {}, "Continues from"), from),
          h("label.field", {}, h("span", {}, "Name of the phase"), name)))),
    h("div.extend-preview", {}, preview.element, refused),
    h("div.dialog-foot", {}, h("button", { type: "button", onclick: () => close() }, "Not now"), agree));
  unit.addEventListener("change", () => (amount.value = suggested(unit.value)));
  changed();
  checkpoints.load();
  return form;

  function of(name) {
    return MODES[name] ?? ["", Object.keys(NUMBERS)];
  }

  function offer(items) {
    from.append(...items.filter((c) => !c.superseded && !c.bad).map((c) =>
      h("option", { value: c.name }, `step ${integer(c.step)}${c.why === "warmdown" ? ", before the warmdown" : ""}`)));
  }

  function suggested(how) {
    const more = Math.max(100, Math.round((run.detail.end_step * 0.5) / 100) * 100);
    return { to_step: run.detail.end_step + more, add_steps: more, add_tokens: more * run.detail.plan.batch.tokens }[how];
  }

  function modeCard(value, text) {
    return h("label.mode-card", {},
      h("input", { type: "radio", name: "mode", value, checked: value === "replan", onchange: () => (mode = value) }),
      h("span", {}, h("b", {}, value), h("small", {}, text)));
  }

  function body() {
    const schedule = { mode };
    for (const { key, input } of numbers) {
      if (of(mode)[1].includes(key) && input.value !== "") schedule[key] = Number(input.value);
    }
    if (of(mode)[1].includes("shape") && shape.value) schedule.shape = shape.value;
    if (mode !== "replan" && keep.checked) schedule.weight_decay = "keep";
    return {
      [unit.value]: Number(amount.value), at: at.value, schedule,
      ...(from.value && { from_checkpoint: from.value }), ...(name.value && { name: name.value }),
    };
  }

  function changed() {
    mode = form?.elements?.mode?.value || mode;
    for (const { key, element } of numbers) element.hidden = !of(mode)[1].includes(key);
    shapeField.hidden = !of(mode)[1].includes("shape");
    keepField.hidden = mode === "replan";
    from.disabled = at.value === "now";
    agree.disabled = true;
    clearTimeout(timer);
    timer = setTimeout(() => Number(amount.value) > 0 && look.load(), DEBOUNCE_MILLISECONDS);
  }

  function askPreview() {
    return ask(`${path("runs", run.detail.id, "extend")}?dry_run=true`, body());
  }

  function show(answer) {
    preview.show(answer);
    agree.disabled = !answer.plan;
  }

  async function submit(event) {
    event.preventDefault();
    if (agree.disabled) return;
    agree.disabled = true;
    try {
      close(await post(path("runs", run.detail.id, "extend"), body()));
    } catch (problem) {
      fill(refused, problemBox(problem));
      agree.disabled = false;
    }
  }
}
