/**
 * Whether the daemon answers, as every request and stream finds it. One request that got lost is
 * ordinary; a few seconds of them are said, once, for the whole page.
 */

const PATIENCE_MILLISECONDS = 1_500;
const IDLE_MILLISECONDS = 5_000;

let lastAnswer = Date.now() / 1000;
let lost = 0; // when the first request in a row got no answer
let timer = 0;
const listeners = new Set();
let isAway = false;

export function answered() {
  lastAnswer = Date.now() / 1000;
  lost = 0;
  clearTimeout(timer);
  if (isAway) tell(false);
}

export function unanswered() {
  if (lost || isAway) return;
  lost = Date.now();
  timer = setTimeout(() => lost && tell(true), PATIENCE_MILLISECONDS);
}

/** A page that asks for nothing, as a form or a help page, notices too when the daemon goes away. */
export function watch() {
  setInterval(() => {
    if (document.hidden || Date.now() - 1000 * lastAnswer < IDLE_MILLISECONDS) return;
    fetch("healthz", { cache: "no-store", signal: AbortSignal.timeout(IDLE_MILLISECONDS) }).then(answered, unanswered);
  }, IDLE_MILLISECONDS);
}

/** @param {(away: {since: number}|null) => void} listener since: unix seconds of the last answer */
export function onChange(listener) {
  listeners.add(listener);
}

function tell(away) {
  isAway = away;
  for (const listener of listeners) listener(away ? { since: lastAnswer } : null);
}
