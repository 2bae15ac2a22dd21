/** Everything that happened, newest first, and what happens now. */

import { get, path } from "../../api.js";
import { fill, h, userText } from "../../dom.js";
import { exactly, integer, when, words } from "../../format.js";
import { createLoader } from "../../loader.js";

const PAGE = 100;
const MOST = 1000;

export function mount(root, run) {
  const rows = h("ol.events", { "aria-label": "Events, newest first" });
  const known = new Map(); // id -> event: the list and the stream tell some of them twice
  const refused = h("div");
  const more = h("button", { type: "button", hidden: true, onclick: () => load(MOST) }, "Earlier events");
  fill(root, refused, h("div.card", {}, rows), h("div.row.tab-tools", {}, more));
  const { load, close } = createLoader({ host: rows, refused, ask: askNewest, show });
  load();

  async function askNewest(limit = PAGE) {
    const { data } = await get(path("runs", run.detail.id, "events"), { newest: true, limit });
    return { data, isAll: limit === MOST || data.length < limit };
  }

  function show({ data, isAll }) {
    more.hidden = isAll;
    for (const event of data) known.set(event.id, event);
    fill(rows, [...known.values()].sort((a, b) => b.id - a.id).map(line));
  }

  function onEvent(event) {
    if (known.has(event.id)) return;
    known.set(event.id, event);
    rows.prepend(line(event));
  }

  return { unmount: close, onEvent };
}

function line(event) {
  return h("li.event", { dataset: { level: event.level } },
    h("time", { title: exactly(event.unix_seconds) }, when(event.unix_seconds)),
    h("span.event-kind", {}, words(event.kind)),
    h("span.event-step", {}, event.step === null ? "" : integer(event.step)),
    userText(event.message, "span"));
}
