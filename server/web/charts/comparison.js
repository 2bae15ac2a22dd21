/** Several runs as one picture a key. Pure. */

import { evaluationOf, metrics, writerOf } from "../catalog.js";
import { breaksOf, lasting, makeAxis } from "./axis.js";
import { join } from "./join.js";
import { LINES } from "./palette.js";
import { focus } from "./pictures.js";

// Few of their values are far out, and the first ones are of no interest: shown in their best range.
const FOCUSED = new Set(["loss", "loss_smooth", "grad_norm"]);

/** What can be compared: each metric of the catalog. @returns {Record<string, {label: string, unit: string, format: (v: number) => string, evaluation: string|null, focus: boolean}>} */
export function compared() {
  return Object.fromEntries(metrics().map((metric) => [metric.key, {
    label: metric.label, unit: metric.unit,
    format: writerOf(metric), evaluation: evaluationOf(metric), focus: FOCUSED.has(metric.key),
  }]));
}

/**
 * Colours that stay with their run while others come and go.
 * @param {string[]} names @param {Map<string, {colour: string, dash: boolean}>} [before] of the same page
 */
export function coloursOf(names, before = new Map()) {
  const kept = new Map(names.filter((name) => before.has(name)).map((name) => [name, before.get(name)]));
  const taken = new Set([...kept.values()].map(({ colour, dash }) => `${colour} ${dash}`));
  for (const name of names) {
    if (kept.has(name)) continue;
    for (let i = 0; ; i++) {
      const look = { colour: LINES[i % LINES.length], dash: Math.floor(i / LINES.length) % 2 === 1 };
      if (taken.has(`${look.colour} ${look.dash}`) && i < 2 * LINES.length) continue;
      taken.add(`${look.colour} ${look.dash}`);
      kept.set(name, look);
      break;
    }
  }
  return kept;
}

/**
 * @param {{name: string, colour: string, dash?: boolean, detail: any, history?: {steps: number[],
 *   seconds: number[], columns: Map<string, any>, segments: any[]}, evaluations?: any[]}[]} runs
 * @param {{key: string, mode: string, zoom: {from: number, to: number}|null, look?: "focus"|"full"|"log"}} view
 * @returns {import("./chart.js").Picture}
 */
export function comparePicture(runs, { key, mode, zoom, look = "focus" }) {
  const { format, evaluation, focus: focused } = compared()[key];
  const parts = runs.flatMap((run) => (evaluation ? evaluated(run, evaluation, mode) : [measured(run, key, mode)]));
  const drawn = parts.filter((part) => part.x.length);
  const { x, columns } = join(drawn);
  const lines = drawn.map((part, i) => ({ ...part.line, format, values: columns[i][0] }));
  const range = zoom ? [zoom.from, zoom.to] : [Math.min(x[0] ?? 0, 0), x[x.length - 1] ?? 1];
  return {
    x, lines, range, axis: labelsOf(mode), log: look === "log" && Boolean(focused),
    yRange: focused && look === "focus" ? unionOfFocus(drawn, range) : null,
    beside: runs.map((run) => ({ colour: run.colour, side: sideOfRun(run, { evaluation, mode }, range) })).filter(({ side }) => side),
  };
}

/** Where a run lies that has nothing in the range. @returns {"left"|"right"|null} */
function sideOfRun(run, { evaluation, mode }, [from, to]) {
  const toX = place(run, mode);
  const own = evaluation ? (run.evaluations ?? []).filter((e) => e.kind === evaluation && !e.superseded).map((e) => toX(e.step, e.unix_seconds)) : [];
  const { steps = [], seconds = [] } = run.history ?? {};
  const last = mode === "time" || mode === "training" ? toX(steps.at(-1), seconds.at(-1)) : toX(run.detail.step);
  const [begin, end] = evaluation ? [Math.min(...own), Math.max(...own)] : [0, last];
  if (end < from && end > -Infinity) return "left";
  return begin > to && begin < Infinity ? "right" : null;
}

/** Each run in its own best range, and all of those in view: none is cut away by the others. */
export function unionOfFocus(parts, [from, to]) {
  const ranges = parts.flatMap(({ x, values: [values] }) => {
    const own = [Math.max(from, x[0]), Math.min(to, x.at(-1))];
    return own[1] > own[0] || x.length === 1 ? [focus(x, [{ values }], own)] : [];
  }).filter(Boolean);
  if (!ranges.length) return null;
  return [Math.min(...ranges.map((r) => r[0])), Math.max(...ranges.map((r) => r[1]))];
}

function measured(run, key, mode) {
  const { steps, seconds, columns } = run.history ?? { steps: [], seconds: [], columns: new Map() };
  const column = columns.get(key);
  const line = { label: run.name, colour: run.colour, dash: run.dash ?? false, joined: true, width: 1.8 };
  if (!column) return { x: [], values: [[]], line };
  const known = steps.map((_, i) => i).filter((i) => column.mean[i] !== null);
  const toX = place(run, mode);
  const x = known.map((i) => toX(steps[i], seconds[i]));
  const gaps = mode === "time" ? gapsOf(run.history, known, x) : undefined;
  return { x, values: [known.map((i) => column.mean[i])], line: { ...line, gaps } };
}

/** Where the run stood still, each from the point before to the point after. */
function gapsOf({ steps, seconds, segments }, known, x) {
  const at = (values) => known.map((i) => values[i]);
  const breaks = breaksOf({ steps: at(steps), seconds: at(seconds), segments });
  return [...breaks].sort((a, b) => a - b).map((i) => [x[i - 1], x[i]]);
}

/** One line for each identity, told apart by name and dash: never one line through both. */
function evaluated(run, kind, mode) {
  const own = (run.evaluations ?? []).filter((e) => e.kind === kind && !e.superseded).sort((a, b) => a.step - b.step);
  const toX = place(run, mode);
  const identities = [...new Set(own.map((e) => e.identity))];
  return identities.map((identity, i) => {
    const latest = [...new Map(own.filter((e) => e.identity === identity).map((e) => [e.step, e])).values()];
    return {
      x: latest.map((e) => toX(e.step, e.unix_seconds)), values: [latest.map((e) => e.value)],
      line: {
        label: identities.length > 1 ? `${run.name} as ${identity.slice(0, 6)}` : run.name,
        colour: run.colour, dash: (run.dash ?? false) || i > 0, points: true, joined: true, width: 1.8,
      },
    };
  });
}

/** Time is counted from each run's own beginning: runs of different days lie on one another. */
function place({ detail, history }, mode) {
  const { tokens } = detail.plan.batch;
  const shape = { tokensPerStep: tokens, flopsPerToken: detail.plan.horizon.flops_per_token };
  if (mode === "step" || mode === "tokens" || mode === "flops") return makeAxis(mode, shape).toX;
  const { steps = [], seconds = [], segments = [] } = history ?? {};
  const clock = steps.map((step, i) => [step, seconds[i]]);
  if (mode === "training") return makeAxis(mode, { ...shape, clock, breaks: breaksOf({ steps, seconds, segments }) }).toX;
  const began = seconds[0] ?? detail.started_at ?? 0;
  return (_, at) => at - began;
}

function labelsOf(mode) {
  const isTime = mode === "time" || mode === "training";
  const axis = makeAxis(isTime ? "step" : mode, { tokensPerStep: 1, flopsPerToken: 1 });
  const format = isTime ? lasting : axis.format;
  return { ...axis, mode: isTime ? "training" : mode, isTime: false, format, toStep: (x) => x };
}
