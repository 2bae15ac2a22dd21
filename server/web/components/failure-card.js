/** A run that failed: what happened in a sentence, the last lines of its log, and what to do as a button. */

import { get, list, path, post } from "../api.js";
import { reasonSentence } from "../condition.js";
import { fill, h, userText } from "../dom.js";
import { words } from "../format.js";
import { link } from "../router.js";
import { problemBox } from "./problem.js";
import { toast } from "./toast.js";

const LINES = 12;

/** @param {import("../pages/run.js").RunContext} run */
export function failureCard(run) {
  const element = h("section.failure.card.pad", { hidden: true, "aria-label": "Why this run failed" });
  let shownFor = "";

  function update() {
    const { detail } = run;
    const key = detail.state === "failed" ? `${detail.reason} ${detail.reason_message} ${detail.remedy?.label}` : "";
    if (key === shownFor) return;
    shownFor = key;
    element.hidden = !key;
    if (key) show();
  }

  function show() {
    const { detail } = run;
    const refused = h("div");
    const log = h("pre.log.short", { tabindex: 0, "aria-label": "Last lines of the log" }, "…");
    const openLog = h("a.button", { href: link(["runs", detail.name, "log"]) }, "Open log");
    const { remedy } = detail;
    const button = remedy && h("button.primary", { type: "button", onclick: () => apply(remedy, button, refused) }, remedy.label);
    fill(element,
      h("h2", {}, `Failed: ${words(detail.reason)}`), userText(reasonSentence(detail), "p"),
      detail.advice && h("p.soft", {}, detail.advice), log, refused,
      h("div.row", {}, button,
        openLog,
        h("a.button", { href: link(["new"], { from: detail.name }) }, "Clone and edit")));
    lastLines(openLog).then((text) => {
      log.hidden = !text;
      fill(log, text);
      log.scrollTop = log.scrollHeight; // the cause is said last
    });
  }

  /** Of the trainer; where the data failed there was none, so of the job that prepared it. */
  async function lastLines(openLog) {
    if (run.detail.reason === "data_unusable") {
      const { data } = await get("v1/jobs", { run: run.detail.id, state: "failed", limit: 20 }).catch(() => ({ data: [] }));
      const job = data.find(({ kind }) => kind === "prepare");
      if (job) {
        openLog.href = link(["jobs", job.id]);
        return get(path("jobs", job.id, "logs"), { tail: LINES }, { accept: "text/plain" }).then((text) => text.trimEnd(), () => job.message);
      }
    }
    const attempts = await list(path("runs", run.detail.id, "attempts")).catch(() => []);
    const text = attempts.findLast((attempt) => attempt.log_tail)?.log_tail ?? "";
    return text.trimEnd().split("\n").slice(-LINES).join("\n");
  }

  async function apply(remedy, button, refused) {
    button.disabled = true;
    try {
      await post(path("runs", run.detail.id, "resume"), remedy.request);
      toast("Resume requested.");
      await run.reload();
    } catch (problem) {
      fill(refused, problemBox(problem));
    }
    button.disabled = false;
  }

  return { element, update };
}
