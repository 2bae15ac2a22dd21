/** What a person types of a group, as the body of POST /v1/groups. Pure. */

import { count, integer, significant } from "./format.js";

/**
 * @param {{name: string, preset: string, base: string, depths: string, grid: string, repeats: string,
 *   budget: Record<string, string>}} typed
 * @returns {any} what is empty is left out; throws SyntaxError for JSON that is none
 */
export function bodyOf({ name, preset, base, depths, grid, repeats, budget }) {
  const limits = Object.entries(budget).filter(([, value]) => value !== "").map(([key, value]) => [key, Number(value)]);
  const rungs = depths.match(/[^\s,]+/g)?.map(Number);
  const varied = gridOf(grid);
  return {
    name: name.trim(), base: { ...(preset && { preset }), ...(base.trim() ? JSON.parse(base) : {}) },
    ...(rungs && { depths: rungs }), ...(Object.keys(varied).length && { grid: varied }),
    ...(repeats !== "" && { repeats: Number(repeats) }), ...(limits.length && { budget: Object.fromEntries(limits) }),
  };
}

/** "a.b: 1 2\nc: x, y" -> {"a.b": [1, 2], c: ["x", "y"]} */
function gridOf(text) {
  const lines = text.split("\n").map((line) => line.trim()).filter(Boolean);
  return Object.fromEntries(lines.map((line) => {
    const [, key, values] = line.match(/^([\w.]+)\s*[:=]\s*(.+)$/) ?? [];
    if (!key) throw new RangeError(`“${line}” is not a grid line: write field: value value`);
    return [key, values.match(/[^\s,]+/g).map(valueOf)];
  }));
}

function valueOf(word) {
  try {
    return JSON.parse(word);
  } catch {
    return word;
  }
}

export const numMembers = ({ depths, grid = {}, repeats = 1 }) =>
  Object.values(grid).reduce((product, values) => product * values.length, (depths?.length ?? 1) * repeats);

/** {completed: 3, running: 1} -> "3 completed, 1 running" */
export const countsOf = (counts) => Object.entries(counts).map(([state, number]) => `${integer(number)} ${state}`).join(", ");

/** "preset demo · depths 4, 6 · optimizer.matrix_lr 0.01, 0.02 · 2 seeds each · budget per run: 30 minutes" */
export function variedLine({ depths, grid, repeats, budget, base }) {
  const values = (list) => list.map((value) => (typeof value === "object" ? JSON.stringify(value) : value)).join(", ");
  const limits = Object.entries(UNITS).filter(([key]) => (budget?.[key] ?? null) !== null).map(([key, unit]) => `${key === "tokens" ? count(budget[key]) : significant(budget[key])} ${unit}`);
  return [
    base.preset && `preset ${base.preset}`, depths && `depths ${values(depths)}`, ...Object.entries(grid).map(([key, list]) => `${key} ${values(list)}`),
    repeats > 1 && `${integer(repeats)} seeds per variant`, limits.length > 0 && `budget per run: ${limits.join(", ")}`,
  ].filter(Boolean).join(" · ");
}

const UNITS = { minutes: "minutes", tokens: "tokens", kwh: "kWh" };

export const problemsOf = (error) => ({ title: error instanceof SyntaxError ? "Not JSON yet" : "The grid cannot be read", detail: error.message });

/** {"optimizer.matrix_lr": 0.02}, 4 -> "depth 4, matrix_lr 0.02" */
export function cellName({ depth, variant }) {
  const parts = Object.entries(variant).map(([key, value]) => `${key.split(".").at(-1)} ${typeof value === "object" ? JSON.stringify(value) : value}`);
  return [depth !== null && depth !== undefined && `depth ${depth}`, ...parts].filter(Boolean).join(", ") || "base";
}
