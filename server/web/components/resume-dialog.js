/** Resume with other settings, mostly after the device ran out of memory. */

import { path, post } from "../api.js";
import { choices } from "../catalog.js";
import { fill, h } from "../dom.js";
import { openDialog } from "./dialog.js";
import { problemBox } from "./problem.js";

export function resumeDialog(detail) {
  return openDialog(`Resume ${detail.name} with overrides`, (close) => {
    const rows = h("input", { type: "number", min: 1, step: 1, placeholder: String(detail.plan.batch.device_batch_size) });
    const compile = choice([["", "as it is"], ["true", "on"], ["false", "off"]]);
    const attention = choice([["", "as it is"], ...choices("resume", "/overrides/attention").map((name) => [name, name])]);
    const nonFinite = choice([["", "as it is"], ...choices("spec", "/recovery/on_non_finite").map((word) => [word, word])]);
    const refused = h("div");
    return h("form.dialog-body", { onsubmit: submit },
      h("p", {}, "The batch in tokens stays the same. Exactness is then called approximate, and the change is recorded."),
      h("label.field", {}, h("span", {}, "Rows per forward pass (device_batch_size)"), rows),
      h("label.field", {}, h("span", {}, "Compile"), compile),
      h("label.field", {}, h("span", {}, "Attention"), attention),
      h("label.field", {}, h("span", {}, "After a loss that is not finite"), nonFinite),
      refused,
      h("div.dialog-foot", {}, h("button", { type: "button", onclick: () => close() }, "Not now"), h("button.primary", { type: "submit" }, "Resume")));

    async function submit(event) {
      event.preventDefault();
      const overrides = {};
      if (rows.value) overrides.device_batch_size = Number(rows.value);
      if (compile.value) overrides.compile = compile.value === "true";
      if (attention.value) overrides.attention = attention.value;
      try {
        close(await post(path("runs", detail.id, "resume"), {
          ...(Object.keys(overrides).length && { overrides }), ...(nonFinite.value && { recovery: { on_non_finite: nonFinite.value } }),
        }));
      } catch (problem) {
        fill(refused, problemBox(problem));
      }
    }
  });
}

export function choice(options, chosen = "") {
  return h("select", {}, options.map(([value, text]) => h("option", { value, selected: value === chosen }, text)));
}
