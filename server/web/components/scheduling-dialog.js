/** Priority and hours of a run, hours of a device. */

import { get, patch, path, put } from "../api.js";
import { bounds } from "../catalog.js";
import { fill, h } from "../dom.js";
import { openDialog } from "./dialog.js";
import { hoursEditor } from "./hours-editor.js";
import { problemBox } from "./problem.js";

/** @param {string} ref of a run @returns {Promise<any>} the run as it is now */
export async function runScheduling(ref) {
  const { id, name, spec } = await get(path("runs", ref));
  return editor(`Priority and hours of ${name}`, (submitted) => {
    const { min, max } = bounds("spec", "/priority");
    const priority = h("input", { type: "number", ...bounds("spec", "/priority"), value: spec.priority, required: true });
    const preemptible = h("input", { type: "checkbox", checked: spec.preemptible });
    const hours = hoursEditor(spec.hours ?? null);
    submitted(() => patch(path("runs", id), { priority: Number(priority.value), preemptible: preemptible.checked, hours: hours.value() }));
    return [
      h("label.field", {}, h("span", {}, `Priority, ${String(min).replace("-", "−")} to ${max}`), priority),
      h("label.tick", {}, preemptible, h("span", {}, "May be preempted by a run with a higher priority")), hours.element,
    ];
  });
}

/** @param {string} device @returns {Promise<any>} its policy as it is now */
export async function deviceScheduling(device) {
  const { problems, ...policy } = await get(path("devices", device, "policy"));
  return editor(`Hours of ${device}`, (submitted) => {
    const hours = hoursEditor(policy.hours);
    const isWatched = h("input", { type: "checkbox", checked: policy.neighbours !== null });
    const words = (value) => h("input", { type: "text", value: (value ?? []).join(" ") });
    const [always, never] = [words(policy.neighbours?.yield_to), words(policy.neighbours?.ignore)];
    const list = (input) => input.value.match(/\S+/g) ?? [];
    submitted(() => put(path("devices", device, "policy"), {
      ...policy, hours: hours.value(),
      neighbours: isWatched.checked ? { ...policy.neighbours, yield_to: list(always), ignore: list(never) } : null,
    }));
    return [
      problems.map((text) => h("p.device-warning", {}, text)), hours.element,
      h("label.tick", {}, isWatched, h("span", {}, "Yield this device to other programs")),
      h("div.field-grid", {}, h("label.field", {}, h("span", {}, "Always yield to"), always), h("label.field", {}, h("span", {}, "Never yield to"), never)),
    ];
  });
}

function editor(title, fieldsOf) {
  return openDialog(title, (close) => {
    let act = null;
    const refused = h("div");
    const fields = fieldsOf((given) => (act = given));
    return h("form.dialog-body", { onsubmit: submit }, fields, refused,
      h("div.dialog-foot", {}, h("button", { type: "button", onclick: () => close() }, "Cancel"), h("button.primary", { type: "submit" }, "Save")));

    async function submit(event) {
      event.preventDefault();
      try {
        close(await act());
      } catch (problem) {
        fill(refused, problemBox(problem));
      }
    }
  }, { wide: true });
}
