/**
 * What can be asked of a run, and how its states look. When a verb is legal the catalog says; the
 * daemon decides.
 */

import { isLegal as legalIn, isSettled } from "./catalog.js";

/** Verbs and requests, as buttons have them. */
export const LABELS = {
  start: "Start",
  resume: "Resume",
  pause: "Pause",
  extend: "Extend",
  checkpoint: "Checkpoint now",
  evaluate: "Evaluate now",
  edit: "Edit…",
  cancel: "Cancel",
  delete: "Delete",
};

/** A repeat of what the state already says is legal and changes nothing: no button offers it. */
const REPEATS = {
  start: (state) => state !== "created",
  resume: (state) => !isSettled(state) && state !== "pausing",
  pause: (state) => state === "paused" || state === "pausing",
  cancel: (state) => state === "cancelled" || state === "cancelling",
};

export const isLegal = (verb, state) => legalIn(verb, state) && !REPEATS[verb]?.(state);
export const isActive = (state) => !isSettled(state);

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
