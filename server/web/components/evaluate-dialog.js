/** Measure the quality now, at a step boundary of the running trainer or from a checkpoint. */

import { path, post } from "../api.js";
import { fill, h } from "../dom.js";
import { openDialog } from "./dialog.js";
import { problemBox } from "./problem.js";

export function evaluateDialog(detail, checkpoint = null) {
  return openDialog(`Evaluate ${checkpoint ?? detail.name}`, (close) => {
    const bpb = h("input", { type: "checkbox", checked: true });
    const core = h("input", { type: "checkbox" });
    const refused = h("div");
    return h("form.dialog-body", { onsubmit: submit },
      h("label.tick", {}, bpb, h("span", {}, "Validation bits per byte")),
      h("label.tick", {}, core, h("span", {}, "CORE (minutes to hours)")),
      refused,
      h("div.dialog-foot", {}, h("button", { type: "button", onclick: () => close() }, "Not now"), h("button.primary", { type: "submit" }, "Evaluate")));

    async function submit(event) {
      event.preventDefault();
      const body = { bpb: bpb.checked, core: core.checked, ...(checkpoint && { checkpoint }) };
      try {
        close(await post(path("runs", detail.id, "evaluations"), body));
      } catch (problem) {
        fill(refused, problemBox(problem));
      }
    }
  });
}
