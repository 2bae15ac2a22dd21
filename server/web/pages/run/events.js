/** Everything that happened, newest first, and what happens now. */

import { get, path } from "../../api.js";
import { problemBox } from "../../components/problem.js";
import { fill, h, userText } from "../../dom.js";
import { exactly, integer, when, words } from "../../format.js";

const PAGE = 100;
const MOST = 1000;
const AGAIN_MS = 2000; // a daemon that restarts while the list is fetched is asked again

export function mount(root, run) {
  const rows = h("ol.events", { "aria-label": "Events, newest first" });
  const refused = h("div");
  const more = h("button", { type: "button", hidden: true, onclick: () => load(MOST) }, "Earlier events");
  fill(root, refused, h("div.card", {}, rows), h("div.row.tab-tools", {}, more));
  load();

  async function load(limit = PAGE) {
    try {
      const { data } = await get(path("runs", run.detail.id, "events"), { newest: true, limit });
      more.hidden = limit === MOST || data.length < limit;
      fill(rows, data.sort((a, b) => b.id - a.id).map(line));
      fill(refused);
    } catch (problem) {
      fill(refused, problemBox(problem));
      const final = problem.status >= 400 && problem.status < 500;
      if (!final) setTimeout(() => root.isConnected && load(limit), AGAIN_MS);
    }
  }

  return { onEvent: (event) => rows.prepend(line(event)) };
}

function line(event) {
  return h("li.event", { dataset: { level: event.level } },
    h("time", { title: exactly(event.unix_seconds) }, when(event.unix_seconds)),
    h("span.event-kind", {}, words(event.kind)),
    h("span.event-step", {}, event.step === null ? "" : integer(event.step)),
    userText(event.message, "span"));
}
