/**
 * Extend a run: say how far and by which curve, see what the joint does, then agree.
 * The preview is the daemon's own answer to the same request with dry_run.
 */

import { ask, list, path, post } from "../api.js";
import { bounds, choices, extendLengths, extendModes } from "../catalog.js";
import { fill, h } from "../dom.js";
import { integer } from "../format.js";
import { createLoader } from "../loader.js";
import { choice } from "./resume-dialog.js";
import { openDialog } from "./dialog.js";
import { createPreview } from "./extend-preview.js";
import { problemBox } from "./problem.js";

const DEBOUNCE_MILLISECONDS = 220;

const NUMBERS = {
  rewarm_steps: "Rewarm steps",
  peak_frac: "Peak, × planned peak",
  decay_ratio: "Decay, share of the phase",
  warmdown_ratio: "Warmdown, share of the horizon",
  final_lr_frac: "Final learning rate, × peak",
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
  const unit = choice(extendLengths());
  const amount = h("input", { type: "number", ...bounds("extend", `/${unit.value}`), required: true, value: suggested(unit.value), "aria-label": "How far" });
  const at = choice([["end", "after the current phase"], ["now", "now, at the next step"]], "end");
  const from = choice([["", "the newest step"]]);
  const name = h("input", { type: "text", ...bounds("extend", "/name"), autocomplete: "off", placeholder: "automatic" });
  const modes = extendModes().map(modeCard);
  const numbers = Object.entries(NUMBERS).map(([key, label]) => {
    const input = h("input", { type: "number", placeholder: "default", step: "any", ...bounds("extend", `/schedule/${key}`) });
    return { key, input, element: h("label.field", {}, h("span", {}, label), input) };
  });
  const shape = choice([["", "as before"], ...choices("extend", "/schedule/shape").map((word) => [word, word])]);
  const shapeField = h("label.field", {}, h("span", {}, "Shape of the decay"), shape);
  const keep = h("input", { type: "checkbox" });
  const keepField = h("label.tick", {}, keep, h("span", {}, "Keep weight decay at its value at the joint"));
  const look = createLoader({ host: preview.element, refused, ask: askPreview, show });
  const checkpoints = createLoader({ host: from, refused, ask: () => list(path("runs", run.detail.id, "checkpoints")), show: offer });
  loaders.push(look, checkpoints);
  let mode = extendModes()[0].mode;
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
  unit.addEventListener("change", () => {
    amount.value = suggested(unit.value);
    amount.max = bounds("extend", `/${unit.value}`).max;
  });
  changed();
  checkpoints.load();
  return form;

  /** Does the chosen mode read this field of the schedule? */
  function reads(field) {
    return extendModes().find((one) => one.mode === mode).fields.includes(field);
  }

  function offer(items) {
    from.append(...items.filter((c) => !c.superseded && !c.bad).map((c) =>
      h("option", { value: c.name }, `step ${integer(c.step)}${c.why === "warmdown" ? ", before the warmdown" : ""}`)));
  }

  function suggested(how) {
    const more = Math.max(100, Math.round((run.detail.end_step * 0.5) / 100) * 100);
    return { to_step: run.detail.end_step + more, add_steps: more, add_tokens: more * run.detail.plan.batch.tokens }[how];
  }

  function modeCard({ mode: value, description }, i) {
    return h("label.mode-card", {},
      h("input", { type: "radio", name: "mode", value, checked: i === 0, onchange: () => (mode = value) }),
      h("span", {}, h("b", {}, value), h("small", {}, description)));
  }

  function body() {
    const schedule = { mode };
    for (const { key, input } of numbers) {
      if (reads(key) && input.value !== "") schedule[key] = Number(input.value);
    }
    if (reads("shape") && shape.value) schedule.shape = shape.value;
    if (reads("weight_decay") && keep.checked) schedule.weight_decay = "keep";
    return {
      [unit.value]: Number(amount.value), at: at.value, schedule,
      ...(from.value && { from_checkpoint: from.value }), ...(name.value && { name: name.value }),
    };
  }

  function changed() {
    mode = form?.elements?.mode?.value || mode;
    for (const { key, element } of numbers) element.hidden = !reads(key);
    shapeField.hidden = !reads("shape");
    keepField.hidden = !reads("weight_decay");
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
