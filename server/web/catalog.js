/**
 * What the daemon offers (GET /v1/catalog): metrics, evaluations, verbs, states, reasons, presets, what a field accepts.
 * The page keeps no list of these; only how they look is written here.
 */

import { get } from "./api.js";
import { bytes, celsius, duration, fixed, percent, rate, setJoulesPerKwh, watts, words } from "./format.js";

/** @type {any} Catalog */
let known = null;

/** Asks once; early.js has asked before this script arrived. */
export async function load() {
  if (known) return;
  const early = await globalThis.traindCatalog;
  globalThis.traindCatalog = null;
  take(early ?? (await get("v1/catalog")));
}

export function take(catalog) {
  known = catalog;
  setJoulesPerKwh(catalog.kilowatt_hour_joules);
}

export const metrics = () => known.metrics;
export const metric = (key) => known.metrics.find((m) => m.key === key);
export const presets = () => known.presets;
export const isSettled = (state) => known.settled_states.includes(state);
/** Has a run or a job in `state` ended? */
export const isEnded = (state) => known.ended_states.includes(state);
/** The factor from which an extend warns of a change of the learning rate. */
export const learningRateJump = () => known.learning_rate_jump;

/** Does `verb` change something in `state`? Elsewhere it is refused, or repeats what the state already says. */
export const changes = (verb, state) =>
  Boolean([...known.verbs, ...known.requests].find((v) => v.verb === verb)?.changes_in.includes(state));

/** "crashed" -> "a crash" */
export const nounOf = (reason) => known.reasons.find((r) => r.code === reason)?.noun ?? words(reason);

/** What a run that made way for a reason did: "paused outside its hours"; null for other reasons. */
export const yieldOf = (reason) => known.reasons.find((r) => r.code === reason)?.yields ?? null;

export const extendModes = () => known.extend_modes;

/** Fields one of which gives a length, with their label or unit: [["steps", "steps"], …] */
export const extendLengths = () => Object.entries(known.extend_lengths);
export const horizons = () => Object.entries(known.horizons);

/** sourcesOf("name") -> ["hf"]; null for a field that every source reads. */
export const sourcesOf = (field) => known.data_sources[field] ?? null;

/** choices("spec", "/data/packing") -> ["best_fit", "lossless"] @param {string} body spec, extend, resume, … */
export const choices = (body, pointer) => known.choices[body][pointer] ?? [];

/** bounds("spec", "/priority") -> {min: -100, max: 100, step: 1}: attributes of an input. */
export const bounds = (body, pointer) => known.bounds[body][pointer] ?? {};

/** The kind of evaluation that measures a metric, null for one that steps report. */
export const evaluationOf = ({ key }) => known.evaluations.find((e) => e.metric === key)?.kind ?? null;
export const evaluations = () => known.evaluations;
export const evaluation = (kind) => known.evaluations.find((e) => e.kind === kind);

const WRITERS = { rate, bytes, seconds: duration, watts, celsius };

/** How a metric's values are written. */
export function writerOf({ format, digits }) {
  if (format === "number") return (v) => fixed(v, digits);
  if (format === "percent") return (v) => percent(v, digits);
  return WRITERS[format];
}

/** written("mfu", 0.421) -> "42.1 %" */
export const written = (key, value) => writerOf(metric(key))(value);
export const loss = (value) => written("loss", value);
export const bpb = (value) => written("val_bpb", value);

/** An evaluation's name at the head of a column: "Val bpb". */
export const titleOf = ({ label }) => `${label[0].toUpperCase()}${label.slice(1)}`;

/** A metric's name in a line with others: "grad norm". */
export const nameOf = ({ short, label }) => short || label;
