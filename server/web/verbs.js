/**
 * What can be asked of a run, and how its states look. When a verb is legal the catalog says; the
 * daemon decides.
 */

import { changes, isSettled } from "./catalog.js";

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

/** Is it offered? A repeat of what the state already says is legal, and no button has it. */
export const isOffered = changes;
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
