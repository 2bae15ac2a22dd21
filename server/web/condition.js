/** What is in the way of a run, as one sentence whose times keep counting. */

import { duration, sentence } from "./format.js";

/** @param {any} run RunDetail, RunSummary or Progress @param {number} [now] unix seconds @returns {string} "" when it steps */
export function conditionLine(run, now = Date.now() / 1000) {
  const { condition } = run;
  if (!condition) return "";
  if (condition.code !== "silent" || !condition.since) return sentence(condition.message);
  const usual = run.step_seconds ? `; a step usually takes ${duration(run.step_seconds)}` : "";
  return `No step for ${duration(Math.round(now - condition.since))}${usual}.`;
}

/**
 * Why a run is in its state. One that waits may begin with the name of another run, which keeps its
 * letters.
 */
export const reasonSentence = ({ state, reason_message: message }) => (["queued", "pausing"].includes(state) ? message : sentence(message));

/** Does the run stand still? Then it has neither a rate nor a time left. */
export const standsStill = ({ condition }) => Boolean(condition);

/** The word in the badge beside the name. */
export function stateWord({ state, condition }) {
  if (!condition) return state;
  return condition.code === "disk_full" ? "waiting for disk" : "silent";
}
