/** The two pictures of a group: loss over compute for each run, and what each variant came to. Pure. */

import { bpb } from "../catalog.js";
import { exponent } from "../format.js";
import { cellName } from "../group-text.js";
import { makeAxis } from "./axis.js";
import { unionOfFocus } from "./comparison.js";
import { join } from "./join.js";
import { LINES } from "./palette.js";

const axis = () => ({ ...makeAxis("flops", { tokensPerStep: 1, flopsPerToken: 1 }), format: (x) => (x === 0 ? "0" : exponent(x, 2)) });
const look = (i) => ({ colour: LINES[i % LINES.length], dash: Math.floor(i / LINES.length) % 2 === 1 });
const key = ({ depth, variant }) => JSON.stringify([depth, variant]);
const CURVE_POINTS = 60;

/** Cells have a colour; the seeds of one cell share it. @returns {Map<string, {colour: string, dash: boolean}>} */
export const coloursOfCells = (cells) => new Map(cells.map((cell, i) => [key(cell), look(i)]));
export const colourOf = (colours, one) => colours.get(key(one)) ?? look(0);

/** @param {any} group GroupDetail @param {Map<string, {steps: number[], values: number[]}>} histories by run */
export function lossPicture(group, histories, colours) {
  const parts = group.members.flatMap((member) => {
    const history = histories.get(member.run);
    if (!history?.steps.length) return [];
    const known = history.steps.map((_, i) => i).filter((i) => history.values[i] !== null && history.steps[i] > 0);
    const line = { label: member.name, ...colourOf(colours, member), joined: true, width: 1.4 };
    return [{ x: known.map((i) => history.steps[i] * member.flops_per_step), values: [known.map((i) => history.values[i])], line }];
  }).filter(({ x }) => x.length);
  const { x, columns } = join(parts);
  const range = [x[0] ?? 0, x.at(-1) ?? 1];
  return { x, range, axis: axis(), logX: true, lines: parts.map((part, i) => ({ ...part.line, values: columns[i][0] })), yRange: parts.length ? unionOfFocus(parts, range) : null };
}

/** A point a cell with its spread over seeds; each fit as a dashed curve up to what it predicts. */
export function qualityPicture(group, colours) {
  const variants = [...new Set(group.cells.map(({ variant }) => JSON.stringify(variant)))];
  const measured = variants.map((variant) => {
    const own = group.cells.filter((cell) => JSON.stringify(cell.variant) === variant && cell.val_bpb_mean !== null).sort((a, b) => a.flops - b.flops);
    const spread = (cell, sign) => cell.val_bpb_mean + sign * (cell.val_bpb_spread ?? 0);
    return {
      x: own.map((cell) => cell.flops), values: [own.map((cell) => cell.val_bpb_mean), own.map((cell) => spread(cell, 1)), own.map((cell) => spread(cell, -1))],
      line: { label: own.length ? cellName({ depth: null, variant: JSON.parse(variant) }) : "", colour: own.length ? colourOf(colours, own[0]).colour : LINES[0], points: true, joined: true, width: 1.5, banded: true, format: bpb },
    };
  });
  const fitted = group.fits.flatMap((fit, i) => {
    const of = LINES[(i + 3) % LINES.length];
    const [first, last] = [fit.points[0][0], Math.max(fit.points.at(-1)[0], fit.prediction?.flops ?? 0)];
    const x = Array.from({ length: CURVE_POINTS }, (_, k) => first * (last / first) ** (k / (CURVE_POINTS - 1)));
    const curve = { x, values: [x.map((flops) => fit.e + fit.a * (flops / fit.reference_flops) ** -fit.alpha)], line: { label: "fit", colour: of, dash: true, joined: true, width: 1.5, format: bpb } };
    if (!fit.prediction) return [curve];
    const { flops, val_bpb: value, val_bpb_interval: [low, high], depth } = fit.prediction;
    return [curve, { x: [flops], values: [[value], [high], [low]], line: { label: `predicted, depth ${depth}`, colour: of, points: true, width: 1.5, banded: true, format: bpb } }];
  });
  const parts = [...measured, ...fitted].filter(({ x }) => x.length);
  const { x, columns } = join(parts);
  const lines = parts.map(({ line }, i) => ({ ...line, values: columns[i][0], band: line.banded ? { high: columns[i][1], low: columns[i][2] } : undefined }));
  const single = x.length === 1 ? [x[0] * 0.8, x[0] * 1.25] : [x[0] ?? 0, x.at(-1) ?? 1];
  return { x, lines, range: single, axis: axis(), logX: true, yRange: null };
}
