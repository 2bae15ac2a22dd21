/**
 * What the daemon offers (GET /v1/catalog): metrics, evaluations, verbs, states, presets, the words of a field.
 * The page keeps no list of these; only how they look is written here.
 */

import { get } from "./api.js";
import { bytes, duration, fixed, integer, percent } from "./format.js";

/** @type {any} Catalog */
let known = null;

/** Asks once; early.js has asked before this script arrived. */
export async function load() {
  if (known) return;
  const early = await globalThis.traindCatalog;
  globalThis.traindCatalog = null;
  take(early ?? (await get("v1/catalog")));
}

export const take = (catalog) => (known = catalog);

export const metrics = () => known.metrics;
export const metric = (key) => known.metrics.find((m) => m.key === key);
export const presets = () => known.presets;
export const isSettled = (state) => known.settled_states.includes(state);
/** Has a run or a job in `state` ended? */
export const isEnded = (state) => known.ended_states.includes(state);
/** The factor from which an extend warns of a change of the learning rate. */
export const learningRateJump = () => known.learning_rate_jump;

/** May `verb` (a verb, or a request such as "checkpoint") be asked in `state`? */
export const isLegal = (verb, state) =>
  Boolean([...known.verbs, ...known.requests].find((v) => v.verb === verb)?.legal_in.includes(state));

/** choices("spec", "/data/packing") -> ["best_fit", "lossless"] @param {"spec"|"extend"|"resume"} body */
export const choices = (body, pointer) => known.choices[body][pointer] ?? [];

/** The kind of evaluation that measures a metric, null for one that steps report. */
export const evaluationOf = ({ key }) => known.evaluations.find((e) => e.metric === key)?.kind ?? null;
export const evaluations = () => known.evaluations;
export const evaluation = (kind) => known.evaluations.find((e) => e.kind === kind);

/** How a metric's values are written. */
export function writerOf({ format, digits, unit }) {
  if (format === "integer") return (v) => integer(v);
  if (format === "percent") return (v) => percent(v, digits);
  if (format === "bytes") return (v) => bytes(v);
  if (format === "seconds") return (v) => duration(v);
  const suffix = UNITS_BESIDE.has(unit) ? ` ${unit}` : "";
  return (v) => (v === null || v === undefined ? "–" : `${fixed(v, digits)}${suffix}`);
}

const UNITS_BESIDE = new Set(["W", "°C"]);
