/** uPlot's options for a picture: series, bands, scales and axes with labels people read. */

import { tick } from "../format.js";
import { timeLabels } from "./axis.js";
import { colour, font } from "./palette.js";

const LABEL_PIXELS = 66; // of the widest label along the horizontal axis
const [MINUTE, HOUR, DAY] = [60, 3600, 86_400];
// Distances between ticks of a duration, in seconds: people divide a day by 24 and an hour by 60.
const DURATIONS = [
  0.001, 0.01, 0.1, 0.5, 1, 2, 5, 10, 15, 30, ...[1, 2, 5, 10, 15, 30].map((n) => n * MINUTE), ...[1, 2, 3, 6, 12].map((n) => n * HOUR),
  ...[1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 10_000].map((n) => n * DAY),
];

/** uPlot wants columns: x, then each line, a band as two invisible ones. */
export function dataOf({ x, lines }) {
  return [x, ...lines.flatMap((line) => (line.band ? [line.values, line.band.high, line.band.low] : [line.values]))];
}

/**
 * @param {import("./chart.js").Picture} picture
 * @param {{width: number, height: number}} size
 * @param {{sync?: string, tick?: (v: number, decimals: number) => string}} options
 * @param {Function} now returns the picture that is shown at the time
 */
export function uplotOptions(picture, { width, height }, options, hooks, bind, now) {
  const series = [{}];
  const bands = [];
  for (const [index, line] of picture.lines.entries()) {
    const stroke = colour(line.colour);
    const at = series.push({
      label: line.label, stroke, width: line.width ?? 1.5, scale: line.scale ?? "y", pxAlign: 0, alpha: line.faint ? 0.35 : 1,
      dash: line.dash ? [5, 5] : undefined, spanGaps: (line.joined ?? false) && !line.gaps,
      ...(line.gaps ? { gaps: (u) => gapsOf(u, now().lines[index]?.gaps ?? []) } : {}),
      points: line.points ? { show: true, size: 5, fill: stroke, stroke, width: 0 } : { show: false },
    });
    if (!line.band) continue;
    const edge = { scale: line.scale ?? "y", stroke: "transparent", width: 0, points: { show: false }, pxAlign: 0, spanGaps: line.joined ?? false };
    series.push({ ...edge }, { ...edge });
    bands.push({ series: [at, at + 1], fill: faint(stroke) });
  }
  return {
    width, height, series, bands, hooks, pxAlign: 0,
    legend: { show: false },
    padding: [8, Math.round(2 * parseFloat(getComputedStyle(document.documentElement).fontSize)), 0, 0], // half of the last label
    scales: scalesOf(picture, () => now().yRange),
    axes: axesOf(picture, options),
    cursor: {
      y: false,
      bind,
      drag: { x: true, y: false, setScale: false },
      points: { size: 6, width: 0 },
      sync: options.sync ? { key: options.sync, scales: ["x", null], setSeries: false } : undefined,
    },
  };
}

/** In pixels. Between them a line is joined over the places of the other lines, where it has no value. */
const gapsOf = (u, gaps) => gaps.map((ends) => ends.map((x) => u.valToPos(x, "x", true)));

/** A band in the colour of its line. */
const faint = (stroke) => (stroke.startsWith("#") ? `${stroke}2b` : colour("band"));

function scalesOf({ axis, log, logX, lines, x }, yRange) {
  const least = x.find((value) => value > 0) ?? 1;
  const scales = {
    x: { time: axis.mode === "time", auto: false, distr: logX ? 3 : 1, range: logX ? (u, min, max) => [Math.max(min, least), Math.max(max, least * 1.001)] : undefined },
    y: { distr: log ? 3 : 1, range: rangeOf("y") },
  };
  if (lines.some((l) => l.scale === "y2")) scales.y2 = { range: rangeOf("y2") };
  return scales;

  function rangeOf(name) {
    return (u, min, max) => {
      const fixedRange = name === "y" ? yRange() : null;
      if (fixedRange) return fixedRange;
      if (min === null || max === null || !Number.isFinite(min)) return log ? [1, 10] : [0, 1];
      if (log) return [min / 1.05, max * 1.05];
      const pad = Math.max((max - min) * 0.08, Math.abs(max) * 0.004) || 1;
      return [min >= 0 && min - pad < 0 ? 0 : min - pad, max + pad];
    };
  }
}

function axesOf(picture, options) {
  const ink = colour("ink-3");
  const em = parseFloat(getComputedStyle(document.documentElement).fontSize);
  const roomy = (u, axis, low, high, pixels) => Math.max(2.2 * em, pixels / 8);
  const base = {
    show: picture.x.length > 0, // an empty chart has nothing to measure
    stroke: ink, font: font(), ticks: { show: false },
    grid: { stroke: colour("grid"), width: 1 }, border: { show: false },
  };
  const y = { ...base, gap: 6, space: roomy, ...(picture.log ? { splits: logSplits, filter: (u, ticks) => ticks } : {}) };
  const axes = [
    { ...base, ...(picture.axis.mode === "training" ? { incrs: DURATIONS } : {}), ...(picture.logX ? { splits: logSteps, filter: (u, ticks) => ticks } : {}), values: xLabels(picture.axis), size: Math.round(1.7 * em), gap: 4, space: { step: 5, time: 7.5 }[picture.axis.mode] * em || 6 * em, grid: { show: false } },
    { ...y, scale: "y", size: Math.round(3.6 * em), values: labelsOf(options.tick) },
  ];
  if (picture.lines.some((l) => l.scale === "y2")) {
    axes.push({ ...y, splits: undefined, filter: undefined, scale: "y2", side: 1, size: Math.round(3 * em), grid: { show: false }, values: labelsOf() });
  }
  return axes;
}

function xLabels(axis) {
  if (axis.mode === "time") return (u, ticks, _, space, increment) => timeLabels(ticks, increment);
  return (u, ticks) => ticks.map((v) => (v === null ? "" : axis.format(v)));
}

/** 1, 2 and 5 of each decade along a horizontal log scale; 1 and 3, or fewer, where labels would touch. */
export function logSteps(u, axis, low, high) {
  if (!(low > 0) || !(high > low)) return [];
  const decade = (0.8 * u.width) / Math.log10(high / low); // pixels
  const parts = [[1, 2, 5], [1, 3], [1]].find((some) => decade * Math.log10(some[1] ?? 10) >= LABEL_PIXELS) ?? [1];
  const every = Math.max(1, Math.ceil(LABEL_PIXELS / decade));
  const found = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power += 1) {
    if (power % every === 0) found.push(...parts.map((part) => Number(`${part}e${power}`)));
  }
  return found.filter((value) => value >= low && value <= high);
}

/** Within two decades a log scale is labelled at round values, not at powers of ten alone. */
export function logSplits(u, axis, low, high) {
  if (!(low > 0) || !(high > low)) return [];
  const decades = Math.log10(high / low);
  const found = [];
  if (decades >= 2) {
    for (let power = Math.ceil(Math.log10(low)); 10 ** power <= high; power++) found.push(10 ** power);
    return found;
  }
  const step = niceStep(high - low, 10);
  for (let value = Math.ceil(low / step) * step; value <= high * 1.0000001; value += step) {
    const rounded = Number(value.toPrecision(12));
    // closer together towards the top: leave out what would touch the tick below it
    if (!found.length || Math.log10(rounded / found.at(-1)) > decades / 9) found.push(rounded);
  }
  return found;
}

function niceStep(span, count) {
  const rough = span / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  return [1, 2, 5, 10].map((f) => f * power).find((step) => step >= rough) ?? 10 * power;
}

function decimalsOf(increment) {
  let decimals = 0;
  while (decimals < 8 && Math.abs(increment * 10 ** decimals - Math.round(increment * 10 ** decimals)) > 1e-6) decimals++;
  return decimals;
}

/** Tick labels with as many decimals as the distance between ticks needs. */
function labelsOf(format) {
  return (u, ticks, axis, space, increment) => {
    const known = ticks.filter((v) => v !== null);
    const between = increment || Math.min(...known.slice(1).map((v, i) => v - known[i]));
    const decimals = decimalsOf(Number.isFinite(between) && between > 0 ? between : 1);
    const write = format ?? tick;
    return ticks.map((v) => (v === null ? "" : write(v, decimals)));
  };
}
