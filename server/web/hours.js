/** Opening hours in words, and the priorities that put a queue in another order. Pure. */

import { bounds, choices } from "./catalog.js";

export const weekdays = () => choices("spec", "/hours/days");

/** [{days, from, to, zone, price_below}] -> "mon–fri 22:00–07:00 (Europe/Berlin); sat, sun all day" */
export function hoursLine(hours) {
  if (hours === null || hours === undefined) return "always";
  return hours.length ? hours.map(ruleLine).join("; ") : "never";
}

function ruleLine({ days = weekdays(), from = "00:00", to = "00:00", zone = null, price_below: price = null }) {
  const when = [days.length < weekdays().length && daysLine(days), from === to ? "all day" : `${from}–${to}`].filter(Boolean).join(" ");
  return [when, zone && `(${zone})`, price !== null && `below ${price} per kWh`].filter(Boolean).join(" ");
}

/** Three or more in a row are a span. */
function daysLine(days) {
  const week = weekdays();
  const at = week.map((day, i) => (days.includes(day) ? i : -1)).filter((i) => i >= 0);
  const runs = [];
  for (const i of at) {
    if (runs.at(-1)?.at(-1) === i - 1) runs.at(-1).push(i);
    else runs.push([i]);
  }
  return runs.map((run) => (run.length > 2 ? `${week[run[0]]}–${week[run.at(-1)]}` : run.map((i) => week[i]).join(", "))).join(", ");
}

/**
 * The fewest changes of priority that put the entry at `from` where the entry at `to` is. Runs of
 * equal priority keep their turn, so those that are passed get a lower one: nothing that trains is
 * displaced by a change of order alone, unless the moved run takes the priority of one above it.
 * @param {{run: string, priority: number, position: number}[]} waiting in order of their turn
 * @returns {[string, number][]|null} run and its new priority; null: there are no lower ones left
 */
export function reordered(waiting, from, to) {
  const { min: lowest, max: highest } = bounds("spec", "/priority");
  const order = [...waiting];
  const [moved] = order.splice(from, 1);
  order.splice(to, 0, moved);
  const own = (entry) => {
    if (entry !== moved) return entry.priority;
    const neighbour = waiting[to].priority;
    return to < from ? Math.max(moved.priority, neighbour) : Math.min(moved.priority, neighbour);
  };
  const given = [];
  for (const entry of order) {
    const before = given.at(-1);
    const most = !before ? highest : before.entry.position < entry.position ? before.priority : before.priority - 1;
    given.push({ entry, priority: Math.min(own(entry), most) });
  }
  if (given.some(({ priority }) => priority < lowest)) return null;
  return given.filter(({ entry, priority }) => priority !== entry.priority).map(({ entry, priority }) => [entry.run, priority]);
}
