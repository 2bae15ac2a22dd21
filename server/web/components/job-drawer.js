/** One job, live: how far it is, its result with its files, its log, and cancel. */

import { get, path, remove } from "../api.js";
import { isEnded } from "../catalog.js";
import { fill, h, setText, userText } from "../dom.js";
import { duration, exactly, percent, sentence } from "../format.js";
import { link } from "../router.js";
import { openDialog } from "./dialog.js";
import { problemBox } from "./problem.js";
import { stateBadge } from "./state.js";
import { facts } from "./table.js";

const EVERY_MILLISECONDS = 2_000;
const TAIL_LINES = 200;

/** @param {string} id @returns {Promise<void>} when it is closed */
export async function openJob(id) {
  let timer = 0;
  await openDialog("Job", (close) => {
    const facing = h("div.stack");
    const bar = h("progress", { max: 1, "aria-label": "Progress of the job" });
    const files = h("div");
    const log = h("pre.log.short", { tabindex: 0, "aria-label": "Log of the job", hidden: true });
    const refused = h("div");
    const cancel = h("button.danger", { type: "button", hidden: true, onclick: stop }, "Cancel the job");
    let isResultShown = false;
    look();
    return h("div.dialog-body", {}, facing, bar, files, log, refused,
      h("div.dialog-foot", {}, cancel, h("button", { type: "button", onclick: () => close() }, "Close")));

    async function look() {
      try {
        const job = await get(path("jobs", id));
        show(job);
        const text = await get(path("jobs", id, "logs"), { tail: TAIL_LINES }, { accept: "text/plain" });
        const isAtEnd = log.scrollTop + log.clientHeight > log.scrollHeight - 30;
        log.hidden = !text.trim();
        setText(log, text);
        if (isAtEnd) log.scrollTop = log.scrollHeight;
        fill(refused);
        if (!isEnded(job.state)) timer = setTimeout(look, EVERY_MILLISECONDS);
      } catch (problem) {
        fill(refused, problemBox(problem));
        if (problem.mayPass) timer = setTimeout(look, EVERY_MILLISECONDS);
      }
    }

    function show(job) {
      const took = job.started_at ? duration((job.ended_at ?? Date.now() / 1000) - job.started_at) : "–";
      fill(facing, h("div.row", {}, h("b", {}, job.kind), stateBadge(job.state), h("code", {}, job.id)), facts([
        job.run && ["run", h("a", { href: link(["runs", job.run]) }, userText(job.run))],
        job.state === "running" && ["stage", [job.stage, job.fraction === null ? "" : percent(job.fraction), job.stage_detail].filter(Boolean).join(" ")],
        job.message && ["message", userText(sentence(job.message))], ["created", exactly(job.created_at)], job.started_at && ["took", took],
        job.exit_code && ["exit code", String(job.exit_code)],
      ]));
      bar.hidden = job.state !== "running";
      if (job.fraction === null) bar.removeAttribute("value");
      else bar.value = job.fraction;
      cancel.hidden = isEnded(job.state);
      if (job.result && !isResultShown) {
        isResultShown = true;
        fill(files, resultOf(job));
      }
    }

    async function stop() {
      cancel.disabled = true;
      try {
        await remove(path("jobs", id));
      } catch (problem) {
        fill(refused, problemBox(problem));
      }
      cancel.disabled = false;
      clearTimeout(timer);
      look();
    }
  }, { wide: true });
  clearTimeout(timer);
}

function resultOf({ id, result }) {
  const names = Array.isArray(result.files) ? result.files : [];
  const address = (name) => `v1/jobs/${encodeURIComponent(id)}/files/${name.split("/").map(encodeURIComponent).join("/")}`;
  return h("section", {}, h("h3", {}, "Result"),
    result.path && h("p", {}, "On the daemon's machine: ", h("code", {}, result.path)),
    names.length > 0 && h("ul.files", {}, names.map((name) => h("li", {}, h("a", { href: address(name), download: "" }, userText(name))))),
    h("details.inline", {}, h("summary", {}, "Details"), h("pre", {}, JSON.stringify(result, null, 2))));
}
