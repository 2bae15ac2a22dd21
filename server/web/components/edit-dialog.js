/** What may change about a run later: name, title, tags, notes, metadata, cadences, notify. */

import { patch, path } from "../api.js";
import { bounds } from "../catalog.js";
import { fill, h } from "../dom.js";
import { openDialog } from "./dialog.js";
import { problemBox } from "./problem.js";

/** @param {any} detail RunDetail @returns {Promise<any>} the run as it is now */
export function editDialog(detail) {
  return openDialog(`Edit ${detail.name}`, (close) => {
    const { tags = "", notes = "", ...others } = detail.metadata;
    const { evaluate, checkpoint, notify } = detail.spec;
    const name = h("input", { type: "text", ...bounds("spec", "/name"), value: detail.name, required: true, autocomplete: "off" });
    const title = h("input", { type: "text", ...bounds("spec", "/title"), value: detail.title ?? "" });
    const tagList = h("input", { type: "text", value: tags, placeholder: "sweep, baseline" });
    const note = h("textarea", { rows: 3, value: notes });
    const more = h("textarea.mono", { rows: 3, value: Object.entries(others).map(([k, v]) => `${k}: ${v}`).join("\n"), placeholder: "key: value" });
    const number = (value, pointer) => h("input", { type: "number", step: "any", ...bounds("spec", pointer), value: value ?? "", placeholder: "never" });
    const [bpbEvery, seconds, keepLast] = [number(evaluate.bpb_every, "/evaluate/bpb_every"), number(checkpoint.every_seconds, "/checkpoint/every_seconds"), number(checkpoint.keep_last, "/checkpoint/keep_last")];
    const addresses = h("input", { type: "text", value: notify.join(" "), placeholder: "https://…" });
    const refused = h("div");
    const field = (label, input) => h("label.field", {}, h("span", {}, label), input);
    return h("form.dialog-body", { onsubmit: submit },
      field("Name", name), field("Title", title), field("Tags, comma-separated", tagList), field("Notes", note), field("Other metadata, one entry per line", more),
      h("div.field-grid", {}, field("Validate every … steps", bpbEvery), field("Checkpoint every … seconds", seconds), field("Checkpoints kept", keepLast)),
      field("Notify", addresses), refused,
      h("div.dialog-foot", {}, h("button", { type: "button", onclick: () => close() }, "Cancel"), h("button.primary", { type: "submit" }, "Save")));

    async function submit(event) {
      event.preventDefault();
      const metadata = Object.fromEntries(more.value.split("\n").map((line) => line.split(/:(.*)/s)).filter(([key, value]) => key.trim() && value !== undefined).map(([key, value]) => [key.trim(), value.trim()]));
      if (tagList.value.trim()) metadata.tags = tagList.value.trim();
      if (note.value.trim()) metadata.notes = note.value.trim();
      const body = { ...(name.value.trim() !== detail.name && { name: name.value.trim() }), title: title.value.trim() || null, metadata };
      if (Number(bpbEvery.value || 0) !== (evaluate.bpb_every ?? 0)) body.evaluate = { bpb_every: bpbEvery.value ? Number(bpbEvery.value) : null };
      const changed = {};
      if (Number(seconds.value || 0) !== (checkpoint.every_seconds ?? 0)) changed.every_seconds = seconds.value ? Number(seconds.value) : null;
      if (keepLast.value && Number(keepLast.value) !== checkpoint.keep_last) changed.keep_last = Number(keepLast.value);
      if (Object.keys(changed).length) body.checkpoint = changed;
      if (addresses.value.trim() !== notify.join(" ")) body.notify = addresses.value.match(/\S+/g) ?? [];
      try {
        close(await patch(path("runs", detail.id), body));
      } catch (problem) {
        fill(refused, problemBox(problem));
      }
    }
  });
}
