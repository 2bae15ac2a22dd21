/**
 * What can be asked of a run, in the API's words, and when. The daemon decides; this table only
 * keeps buttons that cannot work from being offered. See server/states.py.
 */

const ACTIVE = ["queued", "preparing", "starting", "running", "recovering"];
const SETTLED = ["created", "paused", "completed", "failed", "cancelled"];

/** @type {Record<string, {label: string, from: string[]}>} */
export const VERBS = {
  start: { label: "Start", from: ["created"] },
  resume: { label: "Resume", from: ["paused", "failed", "cancelled", "pausing"] },
  pause: { label: "Pause", from: ACTIVE },
  extend: { label: "Extend", from: [...ACTIVE, "created", "pausing", "paused", "completed", "failed", "cancelled"] },
  checkpoint: { label: "Checkpoint now", from: ["running"] },
  evaluate: { label: "Evaluate now", from: ["running", "paused", "completed", "failed", "cancelled"] },
  edit: { label: "Edit…", from: [...ACTIVE, "pausing", "cancelling", ...SETTLED] },
  cancel: { label: "Cancel", from: [...ACTIVE, "pausing", "created", "paused", "failed"] },
  delete: { label: "Delete", from: SETTLED },
};

export const isLegal = (verb, state) => VERBS[verb].from.includes(state);
export const isActive = (state) => ACTIVE.includes(state) || state === "pausing" || state === "cancelling";

/** How a state looks: its colour family. */
export const TONE = {
  created: "quiet",
  queued: "calm",
  preparing: "calm",
  starting: "calm",
  running: "good",
  recovering: "warn",
  pausing: "warn",
  paused: "warn",
  cancelling: "quiet",
  cancelled: "quiet",
  completed: "done",
  failed: "bad",
};

export const STATES = Object.keys(TONE);
