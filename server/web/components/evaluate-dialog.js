/** Measure the quality now, at a step boundary of the running trainer or from a checkpoint. */

import { path, post } from "../api.js";
import { evaluations } from "../catalog.js";
import { fill, h } from "../dom.js";
import { openDialog } from "./dialog.js";
import { problemBox } from "./problem.js";

export function evaluateDialog(detail, checkpoint = null) {
  return openDialog(`Evaluate ${checkpoint ?? detail.name}`, (close) => {
    const kinds = evaluations().map(({ kind, title, cost }, i) => {
      const input = h("input", { type: "checkbox", checked: i === 0 });
      return { kind, input, element: h("label.tick", {}, input, h("span", {}, `${title.replace(/\.$/, "")}${cost && ` (${cost})`}`)) };
    });
    const refused = h("div");
    return h("form.dialog-body", { onsubmit: submit },
      kinds.map(({ element }) => element),
      refused,
      h("div.dialog-foot", {}, h("button", { type: "button", onclick: () => close() }, "Not now"), h("button.primary", { type: "submit" }, "Evaluate")));

    async function submit(event) {
      event.preventDefault();
      const body = { ...Object.fromEntries(kinds.map(({ kind, input }) => [kind, input.checked])), ...(checkpoint && { checkpoint }) };
      try {
        close(await post(path("runs", detail.id, "evaluations"), body));
      } catch (problem) {
        fill(refused, problemBox(problem));
      }
    }
  });
}
