/** Bounded work beside the training: what waits, runs and is done, with its result; cancelled here too. */

import { get, path, remove } from "../api.js";
import { isEnded } from "../catalog.js";
import { openJob } from "../components/job-drawer.js";
import { problemBox } from "../components/problem.js";
import { table } from "../components/table.js";
import { toast } from "../components/toast.js";
import { fill, h, userText } from "../dom.js";
import { ago, duration, exactly, percent, sentence } from "../format.js";
import { createLoader } from "../loader.js";
import { link } from "../router.js";

const EVERY_MILLISECONDS = 3_000;
const MOST = 100;
const TONE = { queued: "calm", running: "good", completed: "done", failed: "bad", cancelled: "quiet" };

export function mount(root, place) {
  const refused = h("div");
  const denied = h("div");
  const host = h("div");
  const opened = new Set(); // results that are being read: they stay open when the list is drawn anew
  fill(root, h("div.page-head", {}, h("h1", { tabindex: -1 }, "Jobs")), refused, denied, host);
  const { load, close } = createLoader({ host, refused, ask: () => get("v1/jobs", { limit: MOST }), show });
  const timer = setInterval(() => !document.hidden && load(), EVERY_MILLISECONDS);
  load();
  if (place.parts[1]) openJob(place.parts[1]);

  function show({ data, has_more: more }) {
    fill(host, h("div.jobs-table", {}, table("Jobs", COLUMNS, data, { empty: "No job yet: samples, evaluations, exports and imports appear here." })),
      more && h("p.soft.note-line", {}, `The newest ${MOST}; GET /v1/jobs has the others.`));
  }

  async function cancel(job) {
    try {
      await remove(path("jobs", job.id));
      toast("Cancelled.");
      fill(denied);
      load();
    } catch (problem) {
      fill(denied, problemBox(problem));
    }
  }

  const COLUMNS = [
    { label: "Job", cell: (job) => [h("button.linklike", { type: "button", "aria-label": `Open ${job.kind} ${job.id}`, onclick: () => openJob(job.id) }, job.kind), h("small", {}, job.id)] },
    { label: "Run", cell: (job) => (job.run ? h("a", { href: link(["runs", job.run]) }, userText(job.run)) : "–") },
    { label: "State", cell: (job) => [h("span.state", { dataset: { tone: TONE[job.state], state: job.state } }, job.state), progressOf(job)] },
    { label: "Where", cell: (job) => job.where },
    { label: "Created", cell: (job) => h("span", { title: exactly(job.created_at) }, ago(job.created_at)) },
    { label: "Took", num: true, cell: (job) => (job.started_at ? duration((job.ended_at ?? Date.now() / 1000) - job.started_at) : "–") },
    { label: "Result", cell: (job) => resultOf(job, opened) },
    { label: "", cell: (job) => !isEnded(job.state) && h("button.small", { type: "button", "aria-label": `Cancel ${job.kind} ${job.id}`, onclick: () => cancel(job) }, "Cancel") },
  ];

  return { unmount: () => (clearInterval(timer), close()), update: (now) => now.parts[1] && openJob(now.parts[1]) };
}

function progressOf({ state, stage, stage_detail: detail, fraction }) {
  if (state !== "running") return null;
  return h("small", {}, [stage, fraction === null ? "" : percent(fraction), detail].filter(Boolean).join(" "));
}

/** Where it is, or what it says; all of it on request. */
function resultOf({ id, result, message, state }, opened) {
  const said = state === "failed" || state === "cancelled" ? message : result?.path ?? "";
  return [said && userText(state === "failed" ? sentence(said) : said), result && h("details.inline", { open: opened.has(id), ontoggle: (event) => (event.target.open ? opened.add(id) : opened.delete(id)) }, h("summary", {}, "Details"), h("pre", {}, JSON.stringify(result, null, 2)))];
}
