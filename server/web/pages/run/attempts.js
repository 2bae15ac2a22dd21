/** The planned stretches, and the processes that served them. */

import { list, path } from "../../api.js";
import { table } from "../../components/table.js";
import { fill, h, userText } from "../../dom.js";
import { count, duration, fixed, integer, sentence, when, words } from "../../format.js";
import { createLoader } from "../../loader.js";

const PHASES = [
  { label: "Phase", cell: (p) => userText(p.name) },
  { label: "Steps", num: true, cell: (p) => `${integer(p.start_step)} → ${integer(p.ended_at_step ?? p.end_step)}` },
  { label: "Curve", cell: (p) => [p.mode, p.imported && h("span.tag", {}, "imported")] },
  { label: "Tokens", num: true, cell: (p) => count(p.tokens) },
  { label: "LR at the joint", num: true, cell: (p) => (p.joint ? p.joint.lr_multiplier.map((v) => fixed(v, 4)).join(" → ") : "–") },
  { label: "Began", cell: (p) => when(p.started_at) },
  { label: "Ended", cell: (p) => when(p.ended_at) },
];

const ATTEMPTS = [
  { label: "Attempt", num: true, cell: (a) => h("b", {}, integer(a.number)) },
  { label: "Steps", num: true, cell: (a) => `${integer(a.start_step)} → ${integer(a.last_step)}` },
  { label: "How it ended", cell: (a) => [a.outcome ? words(a.outcome) : "running", a.reason && a.reason !== "requested" && h("span.tag", { dataset: { tone: a.outcome === "failed" || a.reason === "crashed" ? "bad" : "quiet" } }, words(a.reason)), a.message && userText(sentence(a.message), "small"), a.exit_code && h("small", {}, `Exit code ${a.exit_code}.`)] },
  { label: "Done", num: true, cell: (a) => integer(a.steps_done) },
  { label: "Lost", num: true, cell: (a) => integer(a.steps_lost) },
  { label: "Resume", cell: (a) => a.exact_resume ?? "–" },
  { label: "Device", cell: (a) => a.device },
  { label: "Began", cell: (a) => when(a.started_at) },
  { label: "Took", num: true, cell: (a) => (a.started_at ? duration((a.ended_at ?? Date.now() / 1000) - a.started_at) : "–") },
  { label: "Pid", num: true, cell: (a) => a.pid ?? "–" },
];

const CHANGES = new Set(["state", "started", "extend", "phase", "ended", "resume_checked"]);

export function mount(root, run) {
  const refused = h("div");
  const host = h("div.stack");
  fill(root, refused, host);
  const { load, close } = createLoader({
    host, refused, ask: () => Promise.all(["phases", "attempts"].map((what) => list(path("runs", run.detail.id, what)))), show,
  });
  load();

  function show([phases, attempts]) {
    fill(host, h("h2", {}, "Phases"), table("Phases", PHASES, phases),
      h("h2", {}, "Attempts"), table("Attempts", ATTEMPTS, [...attempts].reverse()), attempts.map(tailOf));
  }

  return { unmount: close, onEvent: (event) => CHANGES.has(event.kind) && load() };
}

function tailOf(attempt) {
  if (!attempt.log_tail) return null;
  return h("details.card.pad", {}, h("summary", {}, `Last lines of attempt ${attempt.number}`), h("pre.log.short", {}, attempt.log_tail));
}
