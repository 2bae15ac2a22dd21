/**
 * What a run's charts show: keys of GET /metrics, and how to write them.
 *
 * @typedef {Object} Panel
 * @property {string} id
 * @property {string} title
 * @property {string} [unit] said beside the title
 * @property {{key: string, label: string, colour: string, band?: boolean, width?: number,
 *   scale?: "y2", format?: (v: number) => string, noisy?: boolean}[]} lines
 *   noisy: the smoothing slider draws its average over it
 * @property {string} [evaluation] a kind of the catalog, read from /evaluations instead, split by identity
 * @property {("lr_multiplier"|"momentum"|"weight_decay")[]} [planned] also drawn ahead of now
 */

import { evaluationOf, evaluations, metric, metrics, nameOf, writerOf } from "../catalog.js";
import { bytes, count, percent } from "../format.js";

const EVALUATED = Symbol("the evaluations of the catalog, in its order");

/** Where a metric has its place, and how it is drawn; name, unit and digits are the catalog's. */
const LAID = [
  {
    id: "loss", wide: true, height: 300, metric: "loss", unit: "",
    lines: [
      { key: "loss", label: "raw", colour: "raw", band: true, noisy: true, width: 1 },
      { key: "loss_smooth", colour: "line-1", width: 2 },
    ],
  },
  { id: "lr", metric: "lr_multiplier",
    lines: [{ key: "lr_multiplier", label: "followed", colour: "line-1", width: 2 }], planned: ["lr_multiplier"] },
  EVALUATED,
  { id: "speed", metric: "tokens_per_second", tick: (v) => count(v),
    lines: [{ key: "tokens_per_second", colour: "line-3", band: true, noisy: true }] },
  { id: "mfu", metric: "mfu", tick: (v, decimals) => percent(v, Math.max(0, decimals - 2)),
    lines: [{ key: "mfu", colour: "line-3", band: true, noisy: true }] },
  { id: "grad_norm", metric: "grad_norm",
    lines: [{ key: "grad_norm", colour: "line-5", band: true, noisy: true }] },
  { id: "vram", metric: "vram_reserved_bytes", unit: "", tick: (v) => bytes(v),
    lines: [{ key: "vram_reserved_bytes", colour: "line-4" }] },
  { id: "power", metric: "power_watts", title: "Power and temperature", unit: "",
    lines: [
      { key: "power_watts", colour: "line-2", noisy: true },
      { key: "temperature_celsius", colour: "line-7", scale: "y2" },
    ] },
  { id: "decay", metric: "momentum", title: "Momentum and weight decay",
    lines: [
      { key: "momentum", colour: "line-5" },
      { key: "weight_decay", colour: "line-6", scale: "y2" },
    ], planned: ["momentum", "weight_decay"] },
];
// Follows from the throughput, step by step: it has no panel of its own.
const WITHOUT_PANEL = new Set(["step_seconds"]);

/** Every metric of the catalog: in the panel laid out for it, or in one of its own. @returns {Panel[]} */
export function panels() {
  const placed = LAID.flatMap((panel) => (panel === EVALUATED ? evaluations().map(({ metric: key }) => ({ id: key, metric: key })) : panel));
  const laid = new Set(placed.flatMap((panel) => [panel.metric, ...(panel.lines ?? []).map((line) => line.key)]));
  const others = metrics().filter(({ key }) => !laid.has(key) && !WITHOUT_PANEL.has(key)).map(({ key }) => ({ id: key, metric: key }));
  return [...placed, ...others].map(dressed);
}

function dressed({ metric: key, lines, ...panel }) {
  const of = metric(key);
  const evaluation = evaluationOf(of) ?? undefined;
  const own = lines ?? (evaluation ? [] : [{ key, label: of.label, colour: "line-8", noisy: true }]);
  return {
    title: of.label, unit: of.unit, format: writerOf(of), ...panel, evaluation,
    lines: own.map((line) => ({ label: nameOf(metric(line.key)), ...line, ...(line.scale && { format: writerOf(metric(line.key)) }) })),
  };
}

export const keysOf = (shown) => [...new Set(shown.flatMap((p) => p.lines.map((l) => l.key)))];
export const bandedOf = (shown) => [...new Set(shown.flatMap((p) => p.lines.filter((l) => l.band).map((l) => l.key)))];
