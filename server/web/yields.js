/** When a run made way, for whom, and when it was back: read from its state events. Pure. */

import { when } from "./format.js";

const REASONS = new Set(["preempted", "outside_hours", "device_wanted"]);

/** @param {any[]} events of a run, in any order @returns {{at: number, until: number|null, by: string}[]} in order */
export function yieldsOf(events) {
  const found = [];
  const moves = events.filter((event) => event.kind === "state").sort((a, b) => a.id - b.id);
  for (const { data, message, unix_seconds: at } of moves) {
    const open = found.at(-1)?.until === null ? found.at(-1) : null;
    if (data?.after === "pausing" && REASONS.has(data.reason)) {
      if (!open) found.push({ at, until: null, by: byOf(data.reason, message) });
    } else if (open && data?.after === "running") open.until = at;
    else if (open && ["paused", "cancelled", "completed", "failed"].includes(data?.after)) open.isOver = true;
  }
  return found;
}

/** "yielded to steam at 20:04, back at 23:31" */
export function yieldLine({ at, until, by, isOver }, now) {
  const back = until === null ? (isOver ? "" : ", resumes by itself") : `, back at ${when(until, now)}`;
  return `${by} at ${when(at, now)}${back}`;
}

/** The message names who: "steam uses cuda:0. …", "probe has a higher priority and needs cuda:0." */
function byOf(reason, message) {
  if (reason === "outside_hours") return "paused outside its hours";
  const [, who] = message.match(/^(?:running -> pausing: )?(.+?) (?:uses|has a higher priority and needs) /) ?? [];
  return `yielded to ${who ?? (reason === "preempted" ? "a run of higher priority" : "another program")}`;
}
