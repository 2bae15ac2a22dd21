/** All runs: how each one stands, live. */

import { get, list, path } from "../api.js";
import { deviceStrip } from "../components/device.js";
import { createRunRow } from "../components/run-row.js";
import { fill, h, setText } from "../dom.js";
import { integer } from "../format.js";
import { createLoader } from "../loader.js";
import { go, link, replaceQuery } from "../router.js";
import { follow } from "../sse.js";
import { isActive } from "../verbs.js";

const SETTLE_MILLISECONDS = 150; // several events of one run become one query
const RESCUE_MILLISECONDS = 30_000;
const GROUPS = {
  all: () => true,
  active: (run) => isActive(run.state),
  paused: (run) => run.state === "paused" || run.state === "created",
  completed: (run) => run.state === "completed",
  failed: (run) => run.state === "failed" || run.state === "cancelled",
};

export async function mount(root, place, { setStatus }) {
  const last = await lastEvent();
  const rows = new Map(); // id -> {run, row}
  const chosen = new Set();
  const pending = new Map();
  let group = GROUPS[place.query.show] ? place.query.show : "all";

  const device = deviceStrip();
  const filters = Object.keys(GROUPS).map((name) =>
    h("button.chip", { type: "button", dataset: { name }, onclick: () => setGroup(name) }));
  const compare = h("button", { type: "button", disabled: true, onclick: () => go(["compare"], { runs: chosenNames().join(",") }) }, "Compare");
  const body = h("tbody", { role: "rowgroup" });
  const refused = h("div");
  const empty = h("div.welcome", { hidden: true });
  const table = h("table.runs", { role: "table", "aria-label": "Runs" },
    h("thead", { role: "rowgroup" }, h("tr", { role: "row" },
      ["Select", "Run", "State", "Progress", "Loss", "Val bpb", "Tok/s", "ETA", "Loss so far"].map((text, i) =>
        h("th", { role: "columnheader", scope: "col", class: i >= 4 && i <= 7 ? "num" : null },
          i === 0 ? h("span.visually-hidden", {}, text) : text)))),
    body);
  fill(root,
    h("div.page-head", {}, h("h1", { tabindex: -1 }, "Runs"),
      h("div.chips", { role: "group", "aria-label": "Show" }, filters),
      h("span.spring"), compare, h("a.button.primary", { href: link(["new"]) }, "New run")),
    device.element, refused, table, empty);

  const { load, close } = createLoader({ host: table, refused, ask: () => list("v1/runs", { limit: 100 }), show: reconcile });
  const stop = follow("v1/events", { after: last, onMessage, onReconnect: load, onStatus: setStatus });
  const rescue = setInterval(() => !document.hidden && load(), RESCUE_MILLISECONDS);
  await load();

  function reconcile(runs) {
    const ids = new Set(runs.map((run) => run.id));
    for (const id of rows.keys()) if (!ids.has(id)) dropRow(id);
    runs.forEach(put);
    const order = runs.map((run) => rows.get(run.id).row.element);
    if (order.some((element, i) => body.children[i] !== element)) body.append(...order);
    refresh();
  }

  function put(run) {
    const held = rows.get(run.id);
    if (held) {
      held.run = run;
      held.row.update(run);
      return;
    }
    const row = createRunRow(run, (isChosen) => {
      if (isChosen) chosen.add(run.id);
      else chosen.delete(run.id);
      refresh();
    });
    rows.set(run.id, { run, row });
  }

  function dropRow(id) {
    rows.get(id).row.element.remove();
    rows.delete(id);
    chosen.delete(id);
  }

  function refresh() {
    const all = [...rows.values()];
    for (const chip of filters) {
      const number = all.filter(({ run }) => GROUPS[chip.dataset.name](run)).length;
      setText(chip, `${chip.dataset.name} ${integer(number)}`);
      chip.setAttribute("aria-pressed", String(chip.dataset.name === group));
    }
    for (const { run, row } of all) row.element.hidden = !GROUPS[group](run);
    compare.disabled = chosen.size < 2;
    setText(compare, chosen.size ? `Compare ${chosen.size}` : "Compare");
    table.hidden = all.length === 0;
    empty.hidden = all.length > 0 || refused.children.length > 0;
    if (!empty.hidden) fill(empty, welcome());
  }

  function setGroup(name) {
    group = name;
    replaceQuery({ show: name === "all" ? null : name });
    refresh();
  }

  const chosenNames = () => [...chosen].map((id) => rows.get(id)?.run.name).filter(Boolean);

  function onMessage({ event, data }) {
    if (event === "progress") return onProgress(data);
    if (event === "gone") return load();
    if (!data?.run) return;
    clearTimeout(pending.get(data.run));
    pending.set(data.run, setTimeout(() => reload(data.run), SETTLE_MILLISECONDS));
  }

  function onProgress(progress) {
    const held = rows.get(progress.id);
    if (!held) return;
    Object.assign(held.run, Object.fromEntries(Object.keys(held.run).filter((k) => k in progress).map((k) => [k, progress[k]])));
    held.row.update(held.run);
  }

  async function reload(id) {
    pending.delete(id);
    try {
      const run = await get(path("runs", id));
      if (!rows.has(run.id)) return load();
      put(run);
    } catch (problem) {
      if (problem.status !== 404) return;
      const gone = [...rows].find(([key, { run }]) => key === id || run.name === id);
      if (gone) dropRow(gone[0]);
    }
    refresh();
  }

  function unmount() {
    stop();
    close();
    device.stop();
    clearInterval(rescue);
    pending.forEach(clearTimeout);
  }

  return { unmount };
}

/** The newest event there is: what came before it is in the list, which is asked for afterwards. */
async function lastEvent() {
  const { data } = await get("v1/events", { newest: true, limit: 1 });
  return data[0]?.id ?? null;
}

function welcome() {
  return [
    h("h2", {}, "No runs yet"),
    h("p", {}, "Make the first one here, or from a terminal:"),
    h("pre.shell", {}, `curl -X POST ${location.origin}/v1/runs -H 'Content-Type: application/json' -d '{"name": "hello"}'`),
    h("a.button.primary", { href: link(["new"]) }, "New run"),
  ];
}
