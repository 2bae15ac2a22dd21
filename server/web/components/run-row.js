/** One run in the list. `update` touches only what changed, so that nothing jumps. */

import { conditionLine } from "../condition.js";
import { h, setText, userText } from "../dom.js";
import { bpb, duration, integer, loss } from "../format.js";
import { link } from "../router.js";
import { isActive } from "../verbs.js";
import { sparkline } from "./sparkline.js";
import { progressBar, setState, stateBadge } from "./state.js";

/** @param {any} run RunSummary @param {(isChosen: boolean) => void} onChoose */
export function createRunRow(run, onChoose) {
  const tick = h("input", { type: "checkbox", "aria-label": `Select ${run.name}`, onchange: () => onChoose(tick.checked) });
  const title = h("bdi.run-title.clip", { dir: "auto" });
  const badge = stateBadge(run.state);
  const reason = h("span.reason");
  const bar = progressBar(`Progress of ${run.name}`);
  const numbers = ["Loss", "Val bpb", "Tok/s", "ETA"].map((label) => h("td.num", { role: "cell", dataset: { label } }));
  const spark = h("td.spark-cell", { role: "cell" });
  let drawn = "";

  const element = h("tr", { role: "row" },
    h("td.pick", { role: "cell" }, h("label.hit", {}, tick)),
    h("td.who", { role: "cell" }, h("a.run-name.clip", { href: link(["runs", run.name]) }, userText(run.name)), title),
    h("td.state-cell", { role: "cell" }, badge, reason),
    h("td.progress-cell", { role: "cell" }, bar.element),
    numbers, spark);

  function update(next) {
    setText(title, next.title ?? "");
    title.hidden = !next.title;
    setState(badge, next);
    setText(reason, reasonOf(next));
    reason.title = next.reason_message;
    bar.update(next);
    const active = isActive(next.state);
    [loss(next.loss_smooth ?? next.loss), bpb(next.val_bpb), active ? integer(next.tokens_per_second) : "–", etaOf(next, active)]
      .forEach((text, i) => setText(numbers[i], text));
    drawSparkline(next);
  }

  function drawSparkline(next) {
    const values = next.sparkline ?? [];
    const key = values.join();
    if (key === drawn && spark.firstChild) return;
    drawn = key;
    spark.replaceChildren(sparkline(values, `Loss of ${next.name} so far`));
  }

  update(run);
  return { element, update };
}

/** What a person wants to know next to the state; nothing to say about a run that simply runs. */
export function reasonOf(run) {
  const inTheWay = conditionLine(run);
  if (inTheWay) return inTheWay;
  if (run.state === "running" && run.reason === "requested") return "";
  if (run.queue_position !== null && run.queue_position !== undefined) return `Place ${run.queue_position} in the queue. ${run.reason_message}`;
  return run.reason_message;
}

function etaOf(run, active) {
  if (active) return duration(run.eta_seconds);
  return run.training_seconds ? `took ${duration(run.training_seconds)}` : "–";
}
