/**
 * Phases and attempts behind the lines: a tint for each phase, a line where an attempt began.
 *
 * @typedef {{x: number, tone: string, label?: string}} Edge where something began
 * @typedef {{from: number, to: number}} Band
 */

import { colour } from "./palette.js";

/** Before the lines: tints by phase. @param {Band[]} bands */
export function drawBands(u, bands) {
  if (bands.length < 2) return;
  const { ctx } = u;
  const { left, top, width, height } = u.bbox;
  ctx.save();
  ctx.beginPath();
  ctx.rect(left, top, width, height);
  ctx.clip();
  bands.forEach((band, i) => {
    const from = u.valToPos(band.from, "x", true);
    const to = u.valToPos(band.to, "x", true);
    ctx.fillStyle = colour(i % 2 ? "phase-b" : "phase-a");
    ctx.fillRect(from, top, to - from, height);
  });
  ctx.restore();
}

/** Values above the picture: a small mark at its upper edge, so that a cut spike is still seen. */
export function drawPeaks(u, x, values) {
  const top = u.scales.y.max;
  const { ctx } = u;
  const half = 4 * devicePixelRatio;
  let free = -Infinity;
  ctx.save();
  ctx.fillStyle = colour("bad");
  values.forEach((value, i) => {
    if (value === null || value <= top || x[i] < u.scales.x.min || x[i] > u.scales.x.max) return;
    if (i < 3 || value < 1.1 * Math.max(values[i - 3] ?? 0, values[i + 3] ?? 0)) return; // a slope, not a peak
    const at = u.valToPos(x[i], "x", true);
    if (at < free) return;
    free = at + 2 * half;
    ctx.beginPath();
    ctx.moveTo(at - half, u.bbox.top + 2.2 * half);
    ctx.lineTo(at + half, u.bbox.top + 2.2 * half);
    ctx.lineTo(at, u.bbox.top + 0.6 * half);
    ctx.fill();
  });
  ctx.restore();
}

/** After the lines: where attempts and phases began, named at the foot. @param {Edge[]} edges */
export function drawEdges(u, edges, withLabels) {
  const { ctx } = u;
  const { left, top, width, height } = u.bbox;
  const ratio = devicePixelRatio;
  ctx.save();
  ctx.lineWidth = ratio;
  ctx.font = `${10.5 * ratio}px ${getComputedStyle(document.body).fontFamily}`;
  ctx.textBaseline = "bottom";
  ctx.textAlign = "left";
  let free = -Infinity;
  for (const edge of edges) {
    const x = Math.round(u.valToPos(edge.x, "x", true));
    if (x < left || x > left + width) continue;
    ctx.strokeStyle = colour(edge.tone);
    ctx.fillStyle = colour(edge.tone);
    ctx.setLineDash(edge.label ? [] : [3 * ratio, 3 * ratio]);
    ctx.globalAlpha = edge.label ? 0.75 : 0.9;
    ctx.beginPath();
    ctx.moveTo(x + 0.5, top);
    ctx.lineTo(x + 0.5, top + height);
    ctx.stroke();
    ctx.globalAlpha = 1;
    ctx.beginPath();
    ctx.moveTo(x - 4 * ratio, top);
    ctx.lineTo(x + 4 * ratio, top);
    ctx.lineTo(x, top + 6 * ratio);
    ctx.fill();
    if (withLabels && edge.label && x > free && x + 40 * ratio < left + width) {
      ctx.fillText(edge.label, x + 5 * ratio, top + height - 4 * ratio);
      free = x + ctx.measureText(edge.label).width + 10 * ratio;
    }
  }
  ctx.restore();
}

/** A curve that lies wholly outside the picture: a mark in its colour at that edge. */
export function drawOutside(u, { x, lines, beside = [] }) {
  const { min, max } = u.scales.y;
  const { left, top, width, height } = u.bbox;
  const half = 5 * devicePixelRatio;
  const { ctx } = u;
  const taken = { above: 0, below: 0 };
  ctx.save();
  for (const line of lines) {
    const side = sideOf(line, x, u.scales.x, min, max);
    if (!side) continue;
    const at = left + width - (2 + 3 * taken[side]++) * half;
    const tip = side === "above" ? top + 2 : top + height - 2;
    const foot = side === "above" ? tip + 2 * half : tip - 2 * half;
    ctx.fillStyle = colour(line.colour);
    ctx.beginPath();
    ctx.moveTo(at - half, foot);
    ctx.lineTo(at + half, foot);
    ctx.lineTo(at, tip);
    ctx.fill();
  }
  const besides = { left: 0, right: 0 };
  for (const { colour: own, side } of beside) {
    const at = top + height - (3 + 3 * besides[side]++) * half;
    const [tip, foot] = side === "left" ? [left + 2, left + 2 + 2 * half] : [left + width - 2, left + width - 2 - 2 * half];
    ctx.fillStyle = colour(own);
    ctx.beginPath();
    ctx.moveTo(foot, at - half);
    ctx.lineTo(foot, at + half);
    ctx.lineTo(tip, at);
    ctx.fill();
  }
  ctx.restore();
}

/** @returns {"above"|"below"|null} null: some of it is in view, or it has nothing here */
export function sideOf(line, x, { min: from, max: to }, low, high) {
  let side = null;
  for (let i = 0; i < x.length; i++) {
    const value = line.values[i];
    if (value === null || value === undefined || x[i] < from || x[i] > to) continue;
    const here = value > high ? "above" : value < low ? "below" : null;
    if (here === null || (side && side !== here)) return null;
    side = here;
  }
  return side;
}
