/**
 * What a run's charts show: keys of GET /metrics, and how to write them.
 *
 * @typedef {Object} Panel
 * @property {string} id
 * @property {string} title
 * @property {string} [unit] said beside the title
 * @property {{key: string, label: string, colour: string, band?: boolean, width?: number,
 *   scale?: "y2", format?: (v: number) => string, factor?: number, noisy?: boolean}[]} lines
 *   noisy: the smoothing slider draws its average over it
 * @property {"bpb"|"core"} [evaluation] read from /evaluations instead, split by identity
 * @property {("lr_multiplier"|"momentum"|"weight_decay")[]} [planned] also drawn ahead of now
 */

import { bpb, count, fixed, integer, loss, percent, significant } from "../format.js";

const gigabytes = (v) => (v === null || v === undefined ? "–" : `${fixed(v, 2)} GB`);
const watts = (v) => (v === null || v === undefined ? "–" : `${fixed(v, 0)} W`);
const celsius = (v) => (v === null || v === undefined ? "–" : `${fixed(v, 0)} °C`);

/** @type {Panel[]} */
export const PANELS = [
  {
    id: "loss", title: "Loss", wide: true, height: 300, format: loss,
    lines: [
      { key: "loss", label: "raw", colour: "raw", band: true, noisy: true, width: 1 },
      { key: "loss_smooth", label: "smoothed", colour: "line-1", width: 2 },
    ],
  },
  { id: "lr", title: "Learning rate", unit: "× peak", format: (v) => fixed(v, 4),
    lines: [{ key: "lr_multiplier", label: "followed", colour: "line-1", width: 2 }], planned: ["lr_multiplier"] },
  { id: "val_bpb", title: "Validation", unit: "bits per byte", format: bpb, lines: [], evaluation: "bpb" },
  { id: "core", title: "CORE", unit: "metric", format: bpb, lines: [], evaluation: "core" },
  { id: "speed", title: "Throughput", unit: "tokens per second", format: (v) => integer(v), tick: (v) => count(v),
    lines: [{ key: "tokens_per_second", label: "tok/s", colour: "line-3", band: true, noisy: true }] },
  { id: "mfu", title: "MFU", format: (v) => percent(v, 1), tick: (v, decimals) => percent(v, Math.max(0, decimals - 2)),
    lines: [{ key: "mfu", label: "MFU", colour: "line-3", band: true, noisy: true }] },
  { id: "grad_norm", title: "Gradient norm", format: (v) => significant(v, 3),
    lines: [{ key: "grad_norm", label: "norm", colour: "line-5", band: true, noisy: true }] },
  { id: "vram", title: "VRAM reserved", format: gigabytes,
    lines: [{ key: "vram_reserved_bytes", label: "reserved", colour: "line-4", factor: 1e-9 }] },
  { id: "power", title: "Power and temperature", format: watts,
    lines: [
      { key: "power_watts", label: "power", colour: "line-2", noisy: true },
      { key: "temperature_celsius", label: "temperature", colour: "line-7", scale: "y2", format: celsius },
    ] },
  { id: "decay", title: "Momentum and weight decay", format: (v) => fixed(v, 4),
    lines: [
      { key: "momentum", label: "momentum", colour: "line-5" },
      { key: "weight_decay", label: "weight decay", colour: "line-6", scale: "y2", format: (v) => significant(v, 3) },
    ], planned: ["momentum", "weight_decay"] },
];

export const KEYS = [...new Set(PANELS.flatMap((p) => p.lines.map((l) => l.key)))];
export const BANDED = [...new Set(PANELS.flatMap((p) => p.lines.filter((l) => l.band).map((l) => l.key)))];
