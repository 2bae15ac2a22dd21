/** What can be gone back to: pin, delete, export, sample from, evaluate. */

import { list, patch, path, post, remove } from "../../api.js";
import { confirm } from "../../components/dialog.js";
import { evaluateDialog } from "../../components/evaluate-dialog.js";
import { jobToast } from "../../components/jobs.js";
import { problemBox } from "../../components/problem.js";
import { sampleDialog } from "../../components/sample-dialog.js";
import { choice } from "../../components/resume-dialog.js";
import { table } from "../../components/table.js";
import { toast } from "../../components/toast.js";
import { fill, h } from "../../dom.js";
import { bpb, loss } from "../../catalog.js";
import { ago, bytes, duration, exactly, integer } from "../../format.js";
import { createLoader } from "../../loader.js";

export function mount(root, run) {
  const base = (...rest) => path("runs", run.detail.id, "checkpoints", ...rest);
  const refused = h("div"); // of the list
  const denied = h("div"); // of what was asked of a checkpoint
  const host = h("div");
  const superseded = h("input", { type: "checkbox", onchange: () => load() });
  fill(root, h("div.row.tab-tools", {}, h("span.spring"), h("label.tick", {}, superseded, h("span", {}, "Show superseded checkpoints"))), refused, denied, host);
  const { load, close } = createLoader({ host, refused, ask: () => list(base(), { superseded: superseded.checked || null }), show });
  load();

  function show(items) {
    fill(host, table("Checkpoints", columns(), items.sort((a, b) => b.step - a.step), {
      empty: "No checkpoint yet. One is saved at each interval, on pause and by Checkpoint now.",
      row: (c) => ({ dataset: { superseded: String(c.superseded) } }),
    }));
  }

  async function act(work, text) {
    try {
      const answer = await work();
      if (text) toast(text);
      fill(denied);
      load();
      return answer;
    } catch (problem) {
      fill(denied, problemBox(problem));
      denied.scrollIntoView({ block: "nearest" });
      return null;
    }
  }

  function columns() {
    return [
      { label: "Step", num: true, cell: (c) => h("b", {}, integer(c.step)) },
      { label: "Written", cell: (c) => h("span", { title: exactly(c.created_at) }, ago(c.created_at)) },
      { label: "Why", cell: (c) => [c.why, marksOf(c)] },
      { label: "Size", num: true, cell: (c) => bytes(c.bytes) },
      { label: "Val bpb", num: true, cell: (c) => bpb(c.val_bpb) },
      { label: "Next loss", num: true, cell: (c) => loss(c.next_loss) },
      { label: "Saved in", num: true, cell: (c) => h("span", { title: `training was stalled for ${duration(c.stall_seconds)}` }, duration(c.save_seconds)) },
      { label: "Attempt", num: true, cell: (c) => integer(c.attempt) },
      { label: "Actions", cell: (c) => buttons(c) },
    ];
  }

  function buttons(c) {
    const small = (text, onclick, props = {}) => h("button.small", { type: "button", onclick, "aria-label": `${text} step ${c.step}`, ...props }, text);
    return h("div.row.nowrap", {},
      small(c.pinned ? "Unpin" : "Pin", () => act(() => patch(base(c.name), { pinned: !c.pinned }), c.pinned ? "Unpinned." : "Pinned: retention will not delete it.")),
      small("Sample", () => sampleDialog(run.detail, c)),
      small("Evaluate", () => evaluateDialog(run.detail, c.name).then(jobToast)),
      small("Export", () => exportDialog(c)),
      !c.pinned && small("Delete", () => removeCheckpoint(c), { class: "small danger-text" }));
  }

  function exportDialog(c) {
    const format = choice([["nanochat", "nanochat"], ["huggingface", "Hugging Face"]], "nanochat");
    return confirm({
      title: `Export step ${integer(c.step)}`, agree: "Export",
      text: h("label.field", {}, h("span", {}, "Format"), format),
      act: () => post(path("runs", run.detail.id, "exports"), { format: format.value, checkpoint: c.name }),
    }).then(jobToast);
  }

  async function removeCheckpoint(c) {
    const done = await confirm({
      title: `Delete the checkpoint of step ${integer(c.step)}?`, agree: "Delete", danger: true,
      text: `This frees ${bytes(c.bytes)}. The run can no longer be extended or sampled from this step.`,
      act: () => remove(base(c.name)).then(() => true),
    });
    if (done) {
      toast("Deleted.");
      load();
    }
  }

  return { unmount: close, onEvent: (event) => event.kind?.startsWith("checkpoint") && load() };
}

function marksOf(c) {
  return [
    c.newest && h("span.tag", {}, "newest"), c.best && h("span.tag", { dataset: { tone: "good" } }, "best"),
    c.pinned && h("span.tag", { dataset: { tone: "calm" } }, "pinned"), c.superseded && h("span.tag", {}, "superseded"),
    c.bad && h("span.tag", { dataset: { tone: "bad" }, title: c.bad }, "damaged"),
  ];
}
