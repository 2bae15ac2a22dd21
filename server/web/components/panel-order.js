/** Which panels are shown, in which order and on which scale: a person's choice, kept in this browser. */

import * as prefs from "../prefs.js";

const KEY = "panels";

/** @param {string[]} ids in the order they have by themselves */
export function createOrder(ids) {
  const kept = read();
  const state = {
    order: [...kept.order.filter((id) => ids.includes(id)), ...ids.filter((id) => !kept.order.includes(id))],
    hidden: new Set(kept.hidden.filter((id) => ids.includes(id))),
    log: new Set(kept.log.filter((id) => ids.includes(id))),
  };

  function save() {
    prefs.write(KEY, JSON.stringify({ order: state.order, hidden: [...state.hidden], log: [...state.log] }));
  }

  function move(id, by) {
    const shown = state.order.filter((other) => !state.hidden.has(other));
    const neighbour = shown[shown.indexOf(id) + by];
    if (!neighbour) return;
    const at = state.order.indexOf(neighbour);
    state.order = state.order.filter((other) => other !== id);
    state.order.splice(at, 0, id);
    save();
  }

  function toggle(set, id) {
    if (!state[set].delete(id)) state[set].add(id);
    save();
  }

  function reset() {
    Object.assign(state, { order: [...ids], hidden: new Set(), log: new Set() });
    save();
  }

  return { state, move, toggle, reset };
}

function read() {
  try {
    return { order: [], hidden: [], log: [], ...JSON.parse(prefs.read(KEY, "{}")) };
  } catch {
    return { order: [], hidden: [], log: [] };
  }
}
