/** From the API's answers to what a chart shows. Pure: no DOM, no network. */

import { evaluation, nounOf } from "../catalog.js";
import { integer } from "../format.js";
import { yieldLine } from "../yields.js";
import { join } from "./join.js";
import { LINES } from "./palette.js";
import { smooth } from "./smooth.js";

/**
 * @typedef {Object} Source what is known of the run
 * @property {Frame} frame
 * @property {Map<string, any>} columns
 * @property {any[]} evaluations
 * @property {any[]} phases PhaseView, in order
 * @property {number} step the present one
 * @property {import("./axis.js").Axis} axis
 * @property {{from: number, to: number}|null} zoom steps
 * @property {"focus"|"full"|"log"} look
 * @property {number} smoothing weight of the past
 * @property {any|null} planned PlannedCurve: the schedule ahead
 * @property {boolean} [logX]
 *
 * @typedef {{x: number[], at: number[]}} Frame at: index of the point, -1 where a line breaks
 */

/**
 * The horizontal places of a history. On an axis of wall time a line ends where training stood
 * still: nothing was measured until it went on.
 * @param {{steps: number[], seconds: number[]}} known @param {number} length points that are drawn
 * @param {Set<number>} breaks @returns {Frame}
 */
export function frameOf({ steps, seconds }, length, axis, breaks) {
  const x = [];
  const at = [];
  for (let i = 0; i < length; i++) {
    const here = axis.toX(steps[i], seconds[i]);
    if (axis.mode === "time" && breaks.has(i)) {
      x.push((x.at(-1) + here) / 2);
      at.push(-1);
    }
    x.push(here);
    at.push(i);
  }
  return { x, at };
}

/** @param {import("./panels.js").Panel} panel @param {Source} source */
export function pictureOf(panel, source) {
  const parts = panel.evaluation ? evaluationParts(panel, source) : metricParts(panel, source);
  const planned = (panel.planned ?? []).map((key, i) => plannedPart(key, panel.lines[i], source));
  const all = [...parts, ...planned].filter((part) => part.x.length);
  const { x, columns } = join(all);
  const lines = all.map((part, i) => ({
    ...part.line,
    values: columns[i][0],
    band: part.line.banded ? { high: columns[i][1], low: columns[i][2] } : undefined,
  }));
  const range = rangeOf(x, source, planned.length > 0);
  const isLoss = panel.id === "loss";
  return {
    x, lines, range, axis: source.axis, logX: source.logX && !source.axis.isTime,
    log: isLoss ? source.look === "log" : source.log?.has(panel.id) ?? false,
    yRange: isLoss && source.look === "focus" ? focus(x, lines, range) : null,
  };
}

function metricParts(panel, { frame, columns, axis, smoothing }) {
  const joined = axis.mode !== "time";
  return panel.lines.flatMap((line) => {
    const column = columns.get(line.key);
    if (!column || !frame.x.length) return [];
    const laid = (values) => frame.at.map((i) => (i < 0 ? null : values[i] ?? null));
    const mean = laid(column.mean);
    if (!mean.some((value) => value !== null)) return [];
    const banded = Boolean(line.band && column.min);
    const values = banded ? [mean, laid(column.max), laid(column.min)] : [mean];
    const part = { x: frame.x, values, line: { ...line, banded, joined } };
    if (!line.noisy || !(smoothing > 0)) return [part];
    const over = { ...line, label: `${line.label}, smoothed`, width: 2, joined, banded: false, colour: line.colour === "raw" ? "line-2" : line.colour };
    return [{ ...part, line: { ...part.line, faint: line.colour !== "raw" } }, { x: frame.x, values: [smooth(mean, smoothing)], line: over }];
  });
}

/** One line for each evaluation identity: numbers under different settings are never joined. */
function evaluationParts(panel, { evaluations, axis }) {
  const own = evaluations.filter((e) => e.kind === panel.evaluation && !e.superseded);
  const identities = [...new Set(own.map((e) => e.identity))];
  return identities.map((identity, i) => {
    const items = own.filter((e) => e.identity === identity).sort((a, b) => a.step - b.step);
    const latest = new Map(items.map((e) => [e.step, e]));
    const kept = [...latest.values()];
    return {
      x: kept.map((e) => axis.toX(e.step, e.unix_seconds)),
      values: [kept.map((e) => e.value)],
      line: {
        label: identities.length > 1 ? `as ${identity.slice(0, 6)}` : evaluation(panel.evaluation).label,
        colour: LINES[i % LINES.length], points: true, joined: true, width: 1.5,
      },
    };
  });
}

/** The plan ahead of the present step. Time has no future on its axis: nothing is drawn there. */
function plannedPart(key, like, { planned, step, axis }) {
  if (axis.isTime || !planned) return { x: [], values: [[]], line: {} };
  const first = planned.steps.findIndex((at) => at >= step); // what was ahead when it was asked for
  const ahead = (values) => (first < 0 ? [] : values.slice(first));
  return {
    x: ahead(planned.steps).map((at) => axis.toX(at)),
    values: [ahead(planned[key])],
    line: { label: "planned", colour: like.colour, dash: true, joined: true, width: 1.5, scale: like.scale, format: like.format, quiet: like.key !== "lr_multiplier" },
  };
}

function rangeOf(x, { zoom, axis, frame, step, phases }, ahead) {
  if (zoom) return [axis.toX(zoom.from), axis.toX(zoom.to)];
  if (axis.isTime) return frame.x.length > 1 ? [frame.x[0], frame.x.at(-1)] : [x[0], x.at(-1)];
  const end = phases.length ? phases[phases.length - 1].end_step : step;
  return [0, axis.toX(ahead ? Math.max(end, step, 1) : Math.max(step, 1))];
}

/**
 * The loss without its first fall and without lone spikes, either of which would flatten the rest;
 * the chart marks every value that is cut off at the top.
 */
export function focus(x, lines, [from, to]) {
  const start = from + (to - from) * (from <= x[0] ? 0.06 : 0);
  const lows = [];
  const highs = [];
  for (const line of lines) {
    const [tops, floors] = line.band ? [line.band.high, line.band.low] : [line.values, line.values];
    for (let i = 0; i < x.length; i++) {
      if (x[i] < start || x[i] > to || tops[i] === null || floors[i] === null) continue;
      lows.push(floors[i]);
      highs.push(tops[i]);
    }
  }
  if (!lows.length) return null;
  const low = quantile(lows, 0.002);
  const high = quantile(highs, 0.99);
  const pad = Math.max((high - low) * 0.08, Math.abs(high) * 0.002) || 1;
  return [low - pad, high + pad];
}

function quantile(values, part) {
  values.sort((a, b) => a - b);
  return values[Math.round(part * (values.length - 1))];
}

const OUTCOME_TONE = { crashed: "bad", failed: "bad", terminated: "warn", paused: "warn" };

/**
 * Where attempts and phases began, with how the attempt before ended.
 * @returns {{step: number, tone: string, label?: string, text: string}[]}
 */
export function edgesOf(segments, attempts, phases, yields = []) {
  const byNumber = new Map(attempts.map((a) => [a.number, a]));
  const edges = [];
  segments.forEach((segment, i) => {
    if (i === 0) return;
    const before = byNumber.get(segments[i - 1].attempt);
    const phase = phases.find((p) => p.index === segment.phase);
    if (segment.phase !== segments[i - 1].phase) {
      const name = phase?.name ?? `phase ${segment.phase + 1}`;
      edges.push({ step: segment.from_step, tone: "accent", label: name, text: `${name} begins (${phase?.mode ?? "extend"})` });
    } else if (segment.attempt !== segments[i - 1].attempt) {
      const reason = before?.reason ?? before?.outcome ?? "ended";
      const tone = OUTCOME_TONE[before?.outcome] ?? (before?.outcome ? "warn" : "bad");
      const lost = before?.steps_lost ? `, ${integer(before.steps_lost)} steps repeated` : "";
      const made = yields.find((one) => before?.ended_at >= one.at && before.ended_at <= (one.until ?? Infinity));
      const text = made ? `attempt ${segment.attempt}: ${yieldLine(made)}` : `attempt ${segment.attempt} after ${nounOf(reason)}${lost}`;
      edges.push({ step: segment.from_step, tone: made ? "calm" : tone, text });
    }
  });
  return edges;
}

/** One band for each phase of the lineage. */
export function bandsOf(segments) {
  const bands = [];
  for (const s of segments) {
    const last = bands[bands.length - 1];
    if (last?.phase === s.phase) last.to = s.to_step;
    else bands.push({ phase: s.phase, from: last ? last.to : s.from_step, to: s.to_step });
  }
  return bands;
}
