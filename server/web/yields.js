/** When a run made way, for what, and when it was back: read from its state events. Pure. */

import { isEnded, yieldOf } from "./catalog.js";
import { when } from "./format.js";

/** @param {any[]} events of a run, in any order @returns {{at: number, until: number|null, by: string}[]} in order */
export function yieldsOf(events) {
  const found = [];
  const moves = events.filter((event) => event.kind === "state").sort((a, b) => a.id - b.id);
  for (const { data, unix_seconds: at } of moves) {
    const open = found.at(-1)?.until === null ? found.at(-1) : null;
    if (isYield(data)) {
      if (!open) found.push({ at, until: null, by: byOf(data) });
    } else if (open && data?.after === "running") open.until = at;
    else if (open && (data?.after === "paused" || isEnded(data?.after))) open.isOver = true;
  }
  return found;
}

/** "yielded to steam at 20:04, back at 23:31" */
export function yieldLine({ at, until, by, isOver }, now) {
  const back = until === null ? (isOver ? "" : ", resumes by itself") : `, back at ${when(until, now)}`;
  return `${by} at ${when(at, now)}${back}`;
}

function isYield(data) {
  return data?.is_yield ?? (data?.after === "pausing" && yieldOf(data.reason) !== null); // older events have the reason alone
}

/** "yielded to steam and obs"; of heat and hours, the cause. */
function byOf({ reason, by }) {
  if (by?.length) return `yielded to ${SERIES.format(by)}`;
  return yieldOf(reason) ?? "yielded";
}

const SERIES = new Intl.ListFormat("en-GB");