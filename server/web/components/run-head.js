/** The head of a run's page: name, state, what to do, progress, and the numbers that matter. */

import { fill, h, setText, userText } from "../dom.js";
import { ago, bpb, bytes, count, duration, exactly, exponent, fixed, integer, loss, percent, when } from "../format.js";
import { progressBar, setState, stateBadge } from "./state.js";

/** [key, label, (progress, detail) => [value, note]] */
const STATS = [
  ["loss", "Loss", (p) => [loss(p.loss_smooth ?? p.loss), p.loss === null ? "" : `raw ${loss(p.loss)}`]],
  ["bpb", "Val bpb", (p) => [bpb(p.val_bpb), "bits per byte"]],
  ["core", "CORE", (p) => [bpb(p.core), ""]],
  ["speed", "Throughput", (p) => [p.tokens_per_second === null ? "–" : `${integer(p.tokens_per_second)} tok/s`, p.step_seconds === null ? "" : `${duration(p.step_seconds)} per step`]],
  ["mfu", "MFU", (p) => [percent(p.mfu, 1), p.peak_flops ? `of ${exponent(p.peak_flops.value)} FLOP/s, ${p.peak_flops.source}` : "no peak known"]],
  ["eta", "Time left", (p) => [duration(p.eta_seconds), p.finish_at ? `done ${when(p.finish_at)}` : p.eta_source ?? ""]],
  ["tokens", "Tokens seen", (p, d) => [count(p.tokens_seen), `${fixed(p.tokens_seen / d.plan.parameters.total, 1)} per parameter`]],
  ["lr", "Learning rate", (p) => [p.lr_multiplier === null ? "–" : `${fixed(p.lr_multiplier, 4)} ×`, "of its peak"]],
  ["vram", "VRAM", (p) => [bytes(p.vram_bytes.reserved), p.vram_bytes.total ? `of ${bytes(p.vram_bytes.total)}, peak ${bytes(p.vram_bytes.peak)}` : ""]],
  ["power", "Power", (p) => [p.power_watts === null ? "–" : `${fixed(p.power_watts, 0)} W`, [p.temperature_celsius === null ? "" : `${fixed(p.temperature_celsius, 0)} °C`, p.energy_joules === null ? "" : `${fixed(p.energy_joules / 3.6e6, 2)} kWh`].filter(Boolean).join(", ")]],
  ["checkpoint", "Last checkpoint", (p) => [p.last_checkpoint ? integer(p.last_checkpoint.step) : "–", p.last_checkpoint ? `${ago(p.last_checkpoint.created_at)}, ${bytes(p.last_checkpoint.bytes)}` : "none yet"]],
  ["exact", "Resume", (p) => [p.exact_resume ?? "–", p.exact_resume === "verified" ? "bit for bit" : p.exact_resume === null ? "not resumed yet" : ""]],
];

export function createRunHead() {
  const name = h("h1", { tabindex: -1 });
  const title = h("bdi.head-title", { dir: "auto" });
  const badge = stateBadge("created");
  const reason = h("span.reason");
  const advice = h("p.advice");
  const stage = h("span.stage");
  const bar = progressBar("Progress of this run");
  const cells = STATS.map(([key, label]) => {
    const value = h("dd");
    const note = h("dd.note");
    return { value, note, element: h("div", { dataset: { key } }, h("dt", {}, label), value, note) };
  });
  const stats = h("dl.stats", {}, cells.map((cell) => cell.element));

  function element(actions) {
    return h("header.run-head", {},
      h("div.page-head", {}, name, badge, title, h("span.spring"), actions),
      h("div.standing", {}, reason, advice),
      h("div.row.run-progress", {}, bar.element, stage));
  }

  function update({ detail, progress }) {
    if (name.textContent !== detail.name) fill(name, userText(detail.name));
    setText(title, detail.title ?? "");
    setState(badge, detail.state);
    setText(reason, detail.state === "running" && detail.reason === "requested" ? runningLine(progress) : detail.reason_message);
    setText(advice, detail.state === "running" && detail.reason === "requested" ? "" : progress.advice ?? detail.advice);
    bar.update({ ...progress, state: detail.state });
    setText(stage, stageOf(progress));
    STATS.forEach(([, , of], i) => {
      const [value, note] = of(progress, detail);
      setText(cells[i].value, value);
      setText(cells[i].note, note ?? "");
      cells[i].note.title = note ?? "";
    });
    stats.title = progress.last_step_at ? `Last step ${exactly(progress.last_step_at)}` : "";
  }

  return { element, stats, update };
}

function runningLine(progress) {
  const where = progress.phase ? `${progress.phase}, attempt ${progress.attempt}` : "";
  return progress.last_step_at ? `${where}: last step ${ago(progress.last_step_at)}.` : `${where}.`;
}

function stageOf({ stage, stage_detail: detail, stage_fraction: part }) {
  if (!stage || stage === "training") return "";
  const how = part === null ? "" : ` ${percent(part)}`;
  return `${stage}${how}${detail ? `: ${detail}` : ""}`;
}
