/**
 * The horizontal axis: steps, or what steps amount to. Tokens and FLOPs are multiples of a step;
 * wall time is read off the points themselves, so a night of pause is a gap and not a line; training
 * time leaves the gaps out.
 *
 * @typedef {"step"|"tokens"|"flops"|"time"|"training"} Mode
 * @typedef {{mode: Mode, isTime: boolean, toX: (step: number, unixSeconds?: number) => number,
 *   toStep: (x: number) => number, format: (x: number) => string}} Axis
 */

import { clock, count, duration, exponent, integer, when } from "../format.js";

export const MODES = [["step", "Step"], ["tokens", "Tokens"], ["flops", "FLOPs"], ["time", "Time"], ["training", "Training time"]];

/**
 * @param {Mode} mode
 * @param {{tokensPerStep: number, flopsPerToken: number, clock?: [number, number][], breaks?: Set<number>}} run
 *   clock: (step, unix seconds) pairs in order; breaks: indices in it before which training stood still
 * @returns {Axis}
 */
export function makeAxis(mode, { tokensPerStep, flopsPerToken, clock: pairs = [], breaks = new Set() }) {
  if (mode === "time") return timeAxis(pairs);
  if (mode === "training") return trainingAxis(pairs, breaks);
  const factor = { step: 1, tokens: tokensPerStep, flops: tokensPerStep * flopsPerToken }[mode] ?? 1;
  const format = { step: (x) => integer(x), tokens: (x) => count(x), flops: (x) => exponent(x, 3) }[mode];
  return {
    mode,
    isTime: false,
    toX: (step) => step * factor,
    toStep: (x) => x / factor,
    format: (x) => (x === 0 ? "0" : format(x)),
  };
}

function timeAxis(pairs) {
  return {
    mode: "time",
    isTime: true,
    toX: (step, unixSeconds) => unixSeconds ?? interpolate(pairs, step, 0, 1),
    toStep: (x) => interpolate(pairs, x, 1, 0),
    format: (x) => when(x),
  };
}

/** A place on an axis of durations: "6 h", not "6 h 00 min". */
export const lasting = (seconds) => (seconds === 0 ? "0" : duration(seconds).replace(/ 00 (h|min|s)$/, ""));

/** Seconds spent training up to a step: a break takes no longer than the steps in it usually take. */
function trainingAxis(pairs, breaks) {
  const usual = usualStep(pairs);
  const spent = [];
  let sum = 0;
  pairs.forEach(([step, seconds], i) => {
    if (i > 0) sum += breaks.has(i) ? usual * (step - pairs[i - 1][0]) : seconds - pairs[i - 1][1];
    spent.push([step, sum]);
  });
  return {
    mode: "training",
    isTime: true,
    toX: (step) => interpolate(spent, step, 0, 1),
    toStep: (x) => interpolate(spent, x, 1, 0),
    format: lasting,
  };
}

const GAP_SPACINGS = 5; // times what its steps usually take, and at least GAP_SECONDS
const GAP_SECONDS = 15;

/**
 * Where training stood still: another attempt begins, or the time since the point before is far
 * longer than its steps usually take (a wait for disk space, a long evaluation).
 * @param {{steps: number[], seconds: number[], segments: any[]}} history @returns {Set<number>} indices into `steps`
 */
export function breaksOf({ steps, seconds, segments }) {
  const found = beginsOf(steps, segments);
  const usual = usualStep(steps.map((step, i) => [step, seconds[i]]));
  for (let i = 1; i < steps.length; i++) {
    const expected = usual * (steps[i] - steps[i - 1]);
    if (seconds[i] - seconds[i - 1] - expected > Math.max(GAP_SECONDS, GAP_SPACINGS * expected)) found.add(i);
  }
  return found;
}

/** Where one attempt ends and the next begins. */
function beginsOf(steps, segments) {
  const starts = segments.slice(1).filter((s, i) => s.attempt !== segments[i].attempt).map((s) => s.from_step);
  const found = new Set();
  let next = 0;
  for (let i = 1; i < steps.length && next < starts.length; i++) {
    if (steps[i] < starts[next]) continue;
    found.add(i);
    while (next < starts.length && steps[i] >= starts[next]) next += 1;
  }
  return found;
}

/** Median seconds of a step between two points. */
function usualStep(pairs) {
  const each = pairs.slice(1).map(([step, seconds], i) => (seconds - pairs[i][1]) / (step - pairs[i][0])).filter((s) => s >= 0);
  return each.sort((a, b) => a - b)[each.length >> 1] ?? 0;
}

/** Tick labels of wall time: 24 hours, and the date (ISO) where a day begins or the axis does. */
export function timeLabels(ticks, increment) {
  let day = "";
  return ticks.map((at) => {
    const { date, time: minute, seconds } = clock(at);
    const time = increment < 60 ? `${minute}:${seconds}` : minute;
    const isNew = date !== day;
    day = date;
    if (increment >= 86_400) return date;
    return isNew ? `${date.slice(5)} ${time}` : time;
  });
}

/** Linear between the pairs around `x`; at the ends, the ends. */
export function interpolate(pairs, x, from, to) {
  if (!pairs.length) return NaN;
  let low = 0;
  let high = pairs.length - 1;
  if (x <= pairs[low][from]) return pairs[low][to];
  if (x >= pairs[high][from]) return pairs[high][to];
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (pairs[middle][from] <= x) low = middle;
    else high = middle;
  }
  const [a, b] = [pairs[low], pairs[high]];
  const part = (x - a[from]) / (b[from] - a[from] || 1);
  return a[to] + part * (b[to] - a[to]);
}
