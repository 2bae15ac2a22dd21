/** All runs: how each one stands, live; searched, sorted, chosen from. */

import { get, list, path } from "../api.js";
import { bulkCancel, bulkDelete, bulkTag } from "../components/bulk.js";
import { deviceStrip } from "../components/device.js";
import { menuButton } from "../components/menu.js";
import { COLUMNS, matches, SHOWN_FIRST, sorted } from "../components/run-columns.js";
import { createRunRow } from "../components/run-row.js";
import { sortControl } from "../components/run-sort.js";
import { toast } from "../components/toast.js";
import { fill, h, setText } from "../dom.js";
import { integer } from "../format.js";
import { createLoader } from "../loader.js";
import * as prefs from "../prefs.js";
import { go, link, replaceQuery } from "../router.js";
import { follow } from "../sse.js";
import { isActive } from "../verbs.js";

const SETTLE_MILLISECONDS = 150; // several events of one run become one query
const RESCUE_MILLISECONDS = 60_000;
const TICK_MILLISECONDS = 5_000;
const PAGE = 100;
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
  const view = {
    group: GROUPS[place.query.show] ? place.query.show : "all", search: place.query.q ?? "",
    sort: place.query.sort ?? prefs.read("runs-sort", ""), page: Math.max(1, Number(place.query.page) || 1), columns: columnsKept(),
  };

  const device = deviceStrip();
  const filters = Object.keys(GROUPS).map((name) =>
    h("button.chip", { type: "button", dataset: { name }, onclick: () => set({ group: name, page: 1 }) }));
  const search = h("input", { type: "search", placeholder: "Search: name, #tag, key:value", "aria-label": "Search runs", value: view.search, oninput: () => set({ search: search.value, page: 1 }) });
  const compare = h("button", { type: "button", disabled: true, onclick: () => go(["compare"], { runs: chosenRuns().map((run) => run.name).join(",") }) }, "Compare");
  const several = menuButton("With the selected runs", () => [
    { text: "Tag…", onclick: () => together(bulkTag) },
    { text: "Cancel…", danger: true, onclick: () => together(bulkCancel) },
    { text: "Delete…", danger: true, onclick: () => together(bulkDelete) },
  ], { text: "Selected", class: "tool" });
  const everything = h("input", { type: "checkbox", "aria-label": "Select all runs shown", onchange: () => chooseAll(everything.checked) });
  const head = h("tr", { role: "row" });
  const body = h("tbody", { role: "rowgroup" });
  const sorting = sortControl(view, sortAs);
  const refused = h("div");
  const empty = h("div.welcome", { hidden: true });
  const pages = h("nav.pages", { "aria-label": "Pages of runs" });
  const table = h("table.runs", { role: "table", "aria-label": "Runs" }, h("thead", { role: "rowgroup" }, head), body);
  fill(root,
    h("div.page-head", {}, h("h1", { tabindex: -1 }, "Runs"),
      h("div.chips", { role: "group", "aria-label": "Show" }, filters),
      h("span.spring"), h("a.button.primary", { href: link(["new"]) }, "New run")),
    device.element,
    h("div.row.list-tools", {}, search, sorting.element, h("span.spring"), compare, several.element, menuButton("Columns", columnItems, { text: "Columns", class: "tool" }).element),
    refused, table, pages, empty);

  const { load, close } = createLoader({ host: table, refused, ask: () => list("v1/runs", { limit: 100 }), show: reconcile });
  const stop = follow("v1/events", { after: last, onMessage, onReconnect: load, onStatus: setStatus });
  const rescue = setInterval(() => !document.hidden && load(), RESCUE_MILLISECONDS);
  const ticking = setInterval(() => !document.hidden && rows.forEach(({ run, row }) => row.element.isConnected && row.update(run)), TICK_MILLISECONDS);
  addEventListener("keydown", onSlash);
  drawHead();
  await load();

  // --- what is shown -----------------------------------------------------------------------------

  function reconcile(runs) {
    const ids = new Set(runs.map((run) => run.id));
    for (const id of rows.keys()) if (!ids.has(id)) dropRow(id);
    runs.forEach(put);
    refresh();
  }

  function put(run) {
    const held = rows.get(run.id);
    if (held) {
      held.run = { ...held.run, ...run };
      held.row.update(held.run);
      return;
    }
    const row = createRunRow(run, view.columns, (isChosen) => {
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
    const all = [...rows.values()].map(({ run }) => run);
    const found = all.filter((run) => matches(run, view.search));
    for (const chip of filters) {
      setText(chip, `${chip.dataset.name} ${integer(found.filter(GROUPS[chip.dataset.name]).length)}`);
      chip.setAttribute("aria-pressed", String(chip.dataset.name === view.group));
    }
    const shown = sorted(found.filter(GROUPS[view.group]), view.sort);
    const most = Math.max(1, Math.ceil(shown.length / PAGE));
    view.page = Math.min(view.page, most);
    layRows(shown.slice((view.page - 1) * PAGE, view.page * PAGE).map((run) => rows.get(run.id).row.element));
    drawPages(shown.length, most);
    compare.disabled = chosen.size < 2;
    setText(compare, chosen.size ? `Compare ${chosen.size}` : "Compare");
    several.element.hidden = chosen.size === 0;
    everything.checked = chosen.size > 0 && shown.every((run) => chosen.has(run.id));
    table.hidden = all.length === 0;
    empty.hidden = all.length > 0 || refused.children.length > 0;
    if (!empty.hidden) fill(empty, welcome());
  }

  /** Only what moved is moved: a focused row keeps its focus. */
  function layRows(order) {
    for (const element of [...body.children]) if (!order.includes(element)) element.remove();
    order.forEach((element, i) => {
      if (body.children[i] !== element) body.insertBefore(element, body.children[i] ?? null);
    });
  }

  function drawPages(length, most) {
    pages.hidden = most < 2;
    if (most < 2) return;
    const turn = (text, to) => h("button.tool", { type: "button", disabled: to < 1 || to > most, onclick: () => set({ page: to }) }, text);
    const from = (view.page - 1) * PAGE;
    fill(pages, turn("Previous", view.page - 1), h("span.soft", {}, `${integer(from + 1)} to ${integer(Math.min(from + PAGE, length))} of ${integer(length)}`), turn("Next", view.page + 1));
  }

  function drawHead() {
    const cell = (key, label, isNumber) => {
      const isSorted = view.sort.replace(/^-/, "") === key;
      const direction = isSorted ? (view.sort.startsWith("-") ? "descending" : "ascending") : null;
      const content = key === "name" || COLUMNS[key]?.sort
        ? h("button.sort", { type: "button", onclick: () => sortBy(key) }, label, h("span", { "aria-hidden": "true" }, { ascending: " ↑", descending: " ↓" }[direction] ?? ""))
        : label;
      return h("th", { role: "columnheader", scope: "col", "aria-sort": direction, class: `${isNumber ? "num " : ""}col-${key}` }, content);
    };
    fill(head, h("th.col-pick", { role: "columnheader", scope: "col" }, h("label.hit", {}, everything)), cell("name", "Run"),
      view.columns.map((key) => cell(key, COLUMNS[key].label, Boolean(COLUMNS[key].text))));
  }

  // --- choosing ----------------------------------------------------------------------------------

  function set(changes) {
    Object.assign(view, changes);
    replaceQuery({ show: view.group === "all" ? null : view.group, q: view.search || null, sort: view.sort || null, page: view.page > 1 ? view.page : null });
    refresh();
  }

  function sortAs(next) {
    prefs.write("runs-sort", next);
    set({ sort: next });
    drawHead();
    sorting.update();
  }

  /** Down, up, as they were created. */
  function sortBy(key) {
    sortAs({ [key]: `-${key}`, [`-${key}`]: "" }[view.sort] ?? key);
    head.querySelector(`.col-${key} button`)?.focus();
  }

  function columnItems() {
    const items = Object.entries(COLUMNS).map(([key, { label }]) => ({ text: label, checked: view.columns.includes(key), onclick: () => showColumns(toggled(key)) }));
    return [...items, { text: "Reset", onclick: () => showColumns(SHOWN_FIRST) }];
  }

  const toggled = (key) => Object.keys(COLUMNS).filter((other) => (other === key) !== view.columns.includes(other));

  function showColumns(columns) {
    view.columns = columns;
    prefs.write("runs-columns", columns.join(","));
    drawHead();
    for (const { row } of rows.values()) row.setColumns(columns);
  }

  const chosenRuns = () => [...chosen].map((id) => rows.get(id)?.run).filter(Boolean);

  function chooseAll(isChosen) {
    const shown = [...rows.values()].filter(({ row }) => row.element.isConnected);
    for (const { run, row } of shown) {
      row.choose(isChosen);
      if (isChosen) chosen.add(run.id);
      else chosen.delete(run.id);
    }
    refresh();
  }

  async function together(act) {
    if (!(await act(chosenRuns()))) return;
    for (const { row } of rows.values()) row.choose(false);
    chosen.clear();
    toast("Done.");
    load();
  }

  function onSlash(event) {
    if (event.key !== "/" || event.ctrlKey || event.metaKey || event.target.matches?.("input, textarea, select")) return;
    event.preventDefault();
    search.focus();
  }

  // --- live --------------------------------------------------------------------------------------

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
    Object.assign(held.run, Object.fromEntries(Object.keys(held.run).filter((k) => k in progress).map((k) => [k, progress[k]])), { step_seconds: progress.step_seconds });
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
    clearInterval(ticking);
    removeEventListener("keydown", onSlash);
    pending.forEach(clearTimeout);
  }

  return { unmount };
}

function columnsKept() {
  const kept = prefs.read("runs-columns", "").split(",").filter((key) => key in COLUMNS);
  return kept.length ? kept : SHOWN_FIRST;
}

/** The newest event there is: what came before it is in the list, which is asked for afterwards. */
async function lastEvent() {
  const { data } = await get("v1/events", { newest: true, limit: 1 });
  return data[0]?.id ?? null;
}

function welcome() {
  return [
    h("h2", {}, "No runs yet"),
    h("p", {}, "Create the first one here or from a terminal:"),
    h("pre.shell", {}, `curl -X POST ${location.origin}/v1/runs -H 'Content-Type: application/json' -d '{"name": "hello"}'`),
    h("a.button.primary", { href: link(["new"]) }, "New run"),
  ];
}
