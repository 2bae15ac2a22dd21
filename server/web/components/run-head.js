/** The head of a run's page: name, state, what to do, progress, and the numbers that matter. */

import { evaluations, isEnded, loss, metric, titleOf, writerOf, written } from "../catalog.js";
import { conditionLine, reasonSentence, standsStill } from "../condition.js";
import { fill, h, setText, userText } from "../dom.js";
import { ago, bytes, cost, count, duration, energy, exactly, fixed, flops, integer, percent, sentence, when } from "../format.js";
import { yieldLine } from "../yields.js";
import { progressBar, setState, stateBadge } from "./state.js";

const LONG_STAGE_SECONDS = 60; // a shorter one is over before its duration is read
const NO_STEPS = "no steps at the moment";

/** [key, label, (progress, detail) => [value, note, another label]] */
const statsOf = () => [
  ["loss", metric("loss").label, (p) => [loss(p.loss_smooth ?? p.loss), p.loss === null ? "" : `raw ${loss(p.loss)}`]],
  ...evaluations().map(evaluationStat),
  ["speed", metric("tokens_per_second").label, speedOf],
  ["mfu", metric("mfu").label, (p) => standsStill(p) ? ["–", NO_STEPS] : [written("mfu", p.mfu), p.peak_flops ? `of ${flops(p.peak_flops.value)}/s, ${p.peak_flops.source}` : "no peak known"]],
  ["eta", "Time left", timeOf],
  ["tokens", "Tokens seen", (p, d) => [count(p.tokens_seen), `${fixed(p.tokens_seen / d.plan.parameters.total, 1)} per parameter`]],
  ["lr", metric("lr_multiplier").label, (p) => [written("lr_multiplier", p.lr_multiplier), metric("lr_multiplier").unit]],
  ["vram", metric("vram_reserved_bytes").label, memoryOf],
  ["power", metric("power_watts").label, powerOf],
  ["checkpoint", "Last checkpoint", (p) => [p.last_checkpoint ? integer(p.last_checkpoint.step) : "–", p.last_checkpoint ? `${ago(p.last_checkpoint.created_at)}, ${bytes(p.last_checkpoint.bytes)}` : "none yet"]],
  ["exact", "Resume", (p) => [p.exact_resume ?? "–", p.exact_resume === "verified" ? "bit for bit" : p.exact_resume === null ? "not resumed yet" : ""]],
];

function evaluationStat(one) {
  const { kind, metric: key } = one;
  const { unit } = metric(key);
  const write = writerOf(metric(key));
  const of = (p) => p[key] ?? p.more[key] ?? null;
  return [kind, titleOf(one), (p) => [write(of(p)), of(p) === null ? "not evaluated" : unit]];
}

/** Of a device; on the CPU that of the process. */
function memoryOf(p, d) {
  const { reserved, total, peak } = p.vram_bytes;
  if (d.device === "cpu") return [bytes(peak), "peak of the process", "Memory"];
  const whole = total ? `of ${bytes(total)}, peak ${bytes(peak)}` : "";
  return [bytes(reserved), [whole, byDevice(p, (rank) => rank.vram_reserved_bytes ?? null, bytes)].filter(Boolean).join("; ")];
}

function powerOf(p, d) {
  const notes = [
    p.power_watts === null && d.device === "cpu" && "not measured on the CPU",
    p.temperature_celsius !== null && written("temperature_celsius", p.temperature_celsius),
    p.energy_joules !== null && energy(p.energy_joules),
    byDevice(p, (rank) => rank.power_watts ?? null, writerOf(metric("power_watts"))),
  ];
  return [written("power_watts", p.power_watts), notes.filter(Boolean).join(", ")];
}

function speedOf(p) {
  if (standsStill(p)) return ["–", NO_STEPS];
  if (p.tokens_per_second === null) return ["–", ""];
  return [written("tokens_per_second", p.tokens_per_second), p.step_seconds === null ? "" : `${written("step_seconds", p.step_seconds)} per step`];
}

/** What is left; of a run that has ended, what it took. */
function timeOf(p) {
  if (standsStill(p)) return ["–", NO_STEPS];
  if (!isEnded(p.state)) return [duration(p.eta_seconds), [p.finish_at ? `done ${when(p.finish_at)}` : p.eta_source ?? "", spendOf(p)].filter(Boolean).join(", ")];
  const whole = p.started_at && p.ended_at ? `training; ${duration(p.ended_at - p.started_at)} from start to end` : "training";
  return [duration(p.training_seconds), whole, "Took"];
}

/** What the rest takes: "3.20 kWh, cost 0.96"; empty where the device reports no energy. */
function spendOf({ energy_left_joules: joules = null, cost_left: price = null }) {
  if (joules === null) return "";
  return `${energy(joules)}${price === null ? "" : `, cost ${cost(price)}`}`;
}

/** The parts of a sum over the devices of a run: "cuda:0 9.4 GB, cuda:1 9.3 GB"; empty for a run on one. */
function byDevice(p, read, format) {
  const known = (p.ranks ?? []).filter((rank) => read(rank) !== null);
  return known.length < 2 ? "" : known.map((rank) => `${rank.device} ${format(read(rank))}`).join(", ");
}

export function createRunHead() {
  const name = h("h1", { tabindex: -1 });
  const title = h("bdi.head-title", { dir: "auto" });
  const badge = stateBadge("created");
  const reason = h("span.reason");
  const advice = h("p.advice");
  const yielded = h("p.yielded");
  const stage = h("span.stage");
  const bar = progressBar("Progress of this run");
  const shown = statsOf();
  const cells = shown.map(([key, label]) => {
    const [name, value, note] = [h("dt", {}, label), h("dd"), h("dd.note")];
    return { name, value, note, element: h("div", { dataset: { key } }, name, value, note) };
  });
  const stats = h("dl.stats", {}, cells.map((cell) => cell.element));

  function element(actions) {
    return h("header.run-head", {},
      h("div.page-head", {}, name, badge, title, h("span.spring"), actions),
      h("div.standing", {}, reason, advice, yielded),
      h("div.row.run-progress", {}, bar.element, stage));
  }

  function update({ detail, progress, yields }) {
    if (name.textContent !== detail.name) fill(name, userText(detail.name));
    setText(title, detail.title ?? "");
    setState(badge, { state: detail.state, condition: progress.condition });
    const inTheWay = conditionLine({ ...progress, state: detail.state });
    reason.dataset.tone = inTheWay ? "warn" : "";
    setText(reason, inTheWay || (detail.state === "running" && detail.reason === "requested" ? runningLine(progress) : standingOf(detail)));
    reason.hidden = advice.hidden = detail.state === "failed"; // the card below has them
    setText(advice, detail.state === "running" && detail.reason === "requested" ? "" : progress.advice ?? detail.advice);
    const last = yields.at(-1);
    setText(yielded, last && !isEnded(detail.state) ? sentence(yieldLine(last)) : "");
    bar.update({ ...progress, state: detail.state });
    setText(stage, stageOf(progress));
    shown.forEach(([, label, of], i) => {
      const [value, note, otherLabel] = of(progress, detail);
      setText(cells[i].name, otherLabel ?? label);
      setText(cells[i].value, value);
      setText(cells[i].note, note ?? "");
      cells[i].note.title = note ?? "";
    });
    stats.title = progress.last_step_at ? `Last step ${exactly(progress.last_step_at)}` : "";
  }

  return { element, stats, update };
}

/** "Paused on request at 09:11." */
function standingOf(detail) {
  const { state, state_since: since } = detail;
  const message = reasonSentence(detail);
  return ["paused", "cancelled"].includes(state) && since ? `${message.replace(/\.$/, "")} at ${when(since)}.` : message;
}

function runningLine(progress) {
  const where = progress.phase ? `${progress.phase}, attempt ${progress.attempt}` : "";
  return progress.last_step_at ? `${where}: last step ${ago(progress.last_step_at)}.` : `${where}.`;
}

function stageOf({ stage, stage_since: since, stage_detail: detail, stage_fraction: part }) {
  if (!stage || stage === "training") return "";
  const how = part === null ? "" : ` ${percent(part)}`;
  const lasts = since ? Date.now() / 1000 - since : 0;
  const long = lasts >= LONG_STAGE_SECONDS ? ` for ${duration(lasts)}` : "";
  return `${stage}${how}${long}${detail ? `: ${detail}` : ""}`;
}
