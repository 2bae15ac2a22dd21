/** Several runs as one picture. Pure. */

import { duration, fixed, integer, percent } from "../format.js";
import { makeAxis } from "./axis.js";
import { join } from "./join.js";
import { focus } from "./pictures.js";

/** What can be compared. */
export const COMPARED = {
  loss_smooth: { label: "Loss, smoothed", format: (v) => fixed(v, 4), focus: true },
  loss: { label: "Loss, raw", format: (v) => fixed(v, 4), focus: true },
  val_bpb: { label: "Validation bits per byte", format: (v) => fixed(v, 4), evaluation: "bpb" },
  core: { label: "CORE metric", format: (v) => fixed(v, 4), evaluation: "core" },
  lr_multiplier: { label: "Learning rate, × peak", format: (v) => fixed(v, 4) },
  grad_norm: { label: "Gradient norm", format: (v) => fixed(v, 3) },
  tokens_per_second: { label: "Tokens per second", format: (v) => integer(v) },
  mfu: { label: "MFU", format: (v) => percent(v, 1) },
  step_seconds: { label: "Seconds per step", format: (v) => duration(v) },
};

/**
 * @param {{name: string, colour: string, detail: any, points?: any[][], evaluations?: any[], began?: number}[]} runs
 * @param {{key: string, mode: string, zoom: {from: number, to: number}|null}} view
 * @returns {import("./chart.js").Picture}
 */
export function comparePicture(runs, { key, mode, zoom }) {
  const { format, evaluation, focus: focused } = COMPARED[key];
  const parts = runs.flatMap((run) => (evaluation ? evaluated(run, evaluation, mode) : [measured(run, mode)]));
  const drawn = parts.filter((part) => part.x.length);
  const { x, columns } = join(drawn);
  const lines = drawn.map((part, i) => ({ ...part.line, format, values: columns[i][0] }));
  const range = zoom ? [zoom.from, zoom.to] : [Math.min(x[0] ?? 0, 0), x[x.length - 1] ?? 1];
  return { x, lines, range, axis: labelsOf(mode), yRange: focused ? focus(x, lines, range) : null };
}

function measured(run, mode) {
  const toX = place(run, mode, run.began);
  const points = run.points ?? [];
  return {
    x: points.map((p) => toX(p[0], p[1])), values: [points.map((p) => p[2])],
    line: { label: run.name, colour: run.colour, joined: true, width: 1.8 },
  };
}

/** One line for each identity, told apart by name and dash: never one line through both. */
function evaluated(run, kind, mode) {
  const own = (run.evaluations ?? []).filter((e) => e.kind === kind && !e.superseded).sort((a, b) => a.step - b.step);
  const toX = place(run, mode, own[0]?.unix_seconds);
  const identities = [...new Set(own.map((e) => e.identity))];
  return identities.map((identity, i) => {
    const latest = [...new Map(own.filter((e) => e.identity === identity).map((e) => [e.step, e])).values()];
    return {
      x: latest.map((e) => toX(e.step, e.unix_seconds)), values: [latest.map((e) => e.value)],
      line: {
        label: identities.length > 1 ? `${run.name} as ${identity.slice(0, 6)}` : run.name,
        colour: run.colour, dash: i > 0, points: true, joined: true, width: 1.8,
      },
    };
  });
}

/** Time is counted from each run's own beginning: runs of different days lie on one another. */
function place({ detail }, mode, began) {
  if (mode === "time") return (_, seconds) => seconds - (began ?? detail.started_at ?? 0);
  const { tokens } = detail.plan.batch;
  return makeAxis(mode, { tokensPerStep: tokens, flopsPerToken: detail.plan.horizon.flops_per_token }).toX;
}

function labelsOf(mode) {
  const axis = makeAxis(mode === "time" ? "step" : mode, { tokensPerStep: 1, flopsPerToken: 1 });
  const format = mode === "time" ? (x) => (x === 0 ? "0" : duration(x)) : axis.format;
  return { ...axis, mode, isTime: false, format, toStep: (x) => x };
}
