/**
 * The horizontal axis: steps, or what steps amount to. Tokens and FLOPs are multiples of a step;
 * time is read off the points themselves, so a night of pause is a gap and not a line.
 *
 * @typedef {"step"|"tokens"|"flops"|"time"} Mode
 * @typedef {{mode: Mode, isTime: boolean, toX: (step: number, unixSeconds?: number) => number,
 *   toStep: (x: number) => number, format: (x: number) => string}} Axis
 */

import { count, exponent, integer, when } from "../format.js";

export const MODES = [["step", "Step"], ["tokens", "Tokens"], ["flops", "FLOPs"], ["time", "Time"]];

/**
 * @param {Mode} mode
 * @param {{tokensPerStep: number, flopsPerToken: number, clock?: [number, number][]}} run
 *   clock: (step, unix seconds) pairs in order
 * @returns {Axis}
 */
export function makeAxis(mode, { tokensPerStep, flopsPerToken, clock = [] }) {
  if (mode === "time") return timeAxis(clock);
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

function timeAxis(clock) {
  return {
    mode: "time",
    isTime: true,
    toX: (step, unixSeconds) => unixSeconds ?? interpolate(clock, step, 0, 1),
    toStep: (x) => interpolate(clock, x, 1, 0),
    format: (x) => when(x),
  };
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
