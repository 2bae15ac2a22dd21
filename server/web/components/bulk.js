/** Several runs at once: each is asked for by itself, and what was refused is said by name. */

import { get, patch, path, post, remove } from "../api.js";
import { h } from "../dom.js";
import { isOffered } from "../verbs.js";
import { confirm } from "./dialog.js";
import { tagsOf } from "./run-columns.js";
import { toast } from "./toast.js";

/** @param {any[]} runs RunSummary @returns {Promise<boolean>} whether anything was done */
export async function bulkCancel(runs) {
  const able = runs.filter((run) => isOffered("cancel", run.state));
  return agreed(`Cancel ${named(able)}?`, "They end without saving a checkpoint. Pause saves one first.", "Cancel them", able, (run) => post(path("runs", run.id, "cancel")));
}

export async function bulkDelete(runs) {
  const able = runs.filter((run) => isOffered("delete", run.state));
  const left = runs.length - able.length;
  const rest = left ? ` ${left} of the selected runs cannot be deleted in their state and are kept.` : "";
  return agreed(`Delete ${named(able)}?`, `This permanently deletes their checkpoints, history, samples and logs.${rest}`, "Delete permanently", able, (run) => remove(path("runs", run.id)), String(able.length));
}

export async function bulkTag(runs) {
  const input = h("input", { type: "text", placeholder: "sweep, baseline", required: true });
  return confirm({
    title: `Tag ${named(runs)}`, agree: "Tag", text: h("label.field", {}, h("span", {}, "Tags to add, comma-separated"), input),
    act: () => forEach(runs, async (run) => {
      const { metadata } = await get(path("runs", run.id));
      const tags = [...new Set([...tagsOf({ metadata }), ...input.value.split(",").map((t) => t.trim()).filter(Boolean)])];
      return patch(path("runs", run.id), { metadata: { ...metadata, tags: tags.join(", ") } });
    }),
  });
}

const named = (runs) => (runs.length === 1 ? runs[0].name : `${runs.length} runs`);

async function agreed(title, text, agree, runs, act, typed = null) {
  if (!runs.length) {
    toast("None of the selected runs allows this in its state.", "bad");
    return false;
  }
  return confirm({ title, text, agree, danger: true, typed, act: () => forEach(runs, act) });
}

async function forEach(runs, act) {
  const refused = [];
  for (const run of runs) await act(run).catch((problem) => refused.push(`${run.name}: ${problem.message}`));
  if (refused.length) toast(refused.join(" "), "bad");
  return true;
}
