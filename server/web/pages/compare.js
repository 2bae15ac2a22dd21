/**
 * Several runs side by side: one panel a key under one cursor, by step, tokens, FLOPs or time; what
 * their specs say differently; and how much compute each saves against the first. The address holds
 * all of the view.
 */

import { get, list, path } from "../api.js";
import { MODES } from "../charts/axis.js";
import { createChart } from "../charts/chart.js";
import { coloursOf, compared, comparePicture } from "../charts/comparison.js";
import { createHistory } from "../charts/history.js";
import { computeMultiplier, qualityCurve } from "../charts/multiplier.js";
import { LINES } from "../charts/palette.js";
import { menuButton } from "../components/menu.js";
import { choice } from "../components/resume-dialog.js";
import { segmented } from "../components/segmented.js";
import { stateBadge } from "../components/state.js";
import { table } from "../components/table.js";
import { differences } from "../differences.js";
import { fill, h, userText } from "../dom.js";
import { bpb, evaluation, loss, metric, titleOf } from "../catalog.js";
import { count, duration, exponent, integer, significant } from "../format.js";
import { createLoader } from "../loader.js";
import { here, link, replaceQuery } from "../router.js";
import { isActive } from "../verbs.js";

const MOST = 2 * LINES.length; // as many as can be told apart, by colour and dash
const REFRESH_MILLISECONDS = 15_000;
const FIRST_KEYS = ["loss_smooth", "val_bpb", "lr_multiplier", "tokens_per_second"];

export async function mount(root, place) {
  const all = await list("v1/runs", { limit: 100 });
  const view = viewOf(place.query);
  if (!view.names.length) view.names = all.filter((r) => r.step > 0).slice(0, 3).map((r) => r.name);
  const known = new Map(); // name -> {detail, history, evaluations}
  const charts = new Map(); // key -> chart
  let colours = new Map();
  const control = new AbortController();
  const refused = h("div");
  const limit = h("p.note-line.soft", { role: "status" });
  const picks = h("div.chips", { role: "group", "aria-label": "Runs to compare" });
  const grid = h("div.charts.compare-charts");
  const numbers = h("div.stack");
  fill(root,
    h("div.page-head", {}, h("h1", { tabindex: -1 }, "Compare"), h("span.spring"),
      segmented("Horizontal axis", MODES, view.mode, (mode) => set({ mode, zoom: null })),
      segmented("Loss", [["focus", "Focus"], ["full", "Full"], ["log", "Log"]], view.look, (look) => set({ look })),
      h("button.tool", { type: "button", onclick: () => set({ zoom: null }) }, "All"),
      menuButton("What to compare", keyItems, { text: "Keys", class: "tool" }).element),
    picks, limit, refused, grid,
    h("p.soft.note-line", {}, "Validation results measured under different settings are separate lines: they are not comparable."),
    numbers);

  const { load, close } = createLoader({ host: grid, refused, ask: askAll, show: showAll });
  const refresh = setInterval(() => !document.hidden && isAnyActive() && load(), REFRESH_MILLISECONDS);
  arrange();
  drawPicks();
  load();

  // --- what is compared --------------------------------------------------------------------------

  function set(changes) {
    Object.assign(view, changes);
    replaceQuery(queryOf(view));
    if ("keys" in changes) arrange();
    if ("names" in changes || "keys" in changes || "zoom" in changes) load();
    draw();
  }

  function toggle(name) {
    const isIn = view.names.includes(name);
    if (!isIn && view.names.length >= MOST) return fill(limit, `At most ${MOST} runs can be distinguished: remove one first.`);
    set({ names: isIn ? view.names.filter((n) => n !== name) : [...view.names, name], zoom: null });
    drawPicks();
  }

  function keyItems() {
    return Object.entries(compared()).map(([key, { label }]) => ({
      text: label, checked: view.keys.includes(key),
      onclick: () => set({ keys: view.keys.includes(key) ? view.keys.filter((k) => k !== key) : [...view.keys, key] }),
    }));
  }

  function drawPicks() {
    colours = coloursOf(view.names, colours);
    const others = all.filter((run) => !view.names.includes(run.name)).map((run) => [run.name, run.name]);
    const add = choice([["", "Add a run…"], ...others]);
    add.setAttribute("aria-label", "Add a run");
    add.addEventListener("change", () => add.value && toggle(add.value));
    fill(picks, view.names.map((name) =>
      h("button.chip.run-chip", {
        type: "button", "aria-label": `Leave out ${name}`, onclick: () => toggle(name), style: { "--key": `var(--${colours.get(name).colour})` },
      }, h("i.key", { dataset: { dash: colours.get(name).dash ? "yes" : "no" } }), userText(name), h("span.muted", { "aria-hidden": "true" }, "✕"))), add);
    fill(limit, view.dropped ? `The address names ${view.names.length + view.dropped} runs; the first ${view.names.length} are drawn, the most that can be distinguished.` : "");
  }

  // --- asking ------------------------------------------------------------------------------------

  function askAll() {
    return Promise.all(view.names.map(loadRun));
  }

  function showAll(found) {
    for (const [name, run] of found) known.set(name, run);
    draw();
  }

  function isAnyActive() {
    return view.names.some((name) => isActive(known.get(name)?.detail.state));
  }

  /** What ended stays as it is known. */
  async function loadRun(name) {
    const run = { history: createHistory(), ...known.get(name) };
    const isOld = !run.detail || isActive(run.detail.state);
    const options = { signal: control.signal };
    const keys = view.keys.filter((key) => !compared()[key].evaluation);
    const range = JSON.stringify([view.zoom, view.mode, keys]);
    if (isOld) run.detail = await get(path("runs", name), {}, options);
    const asked = [];
    if (isOld || !run.evaluations) asked.push(list(path("runs", name, "evaluations"), {}, options).then((found) => (run.evaluations = found)));
    if ((isOld || run.range !== range) && keys.length) {
      const query = { keys: keys.join(","), columns: true, bands: "", max_points: 900, ...stepsOf(view, run) };
      asked.push(get(path("runs", name, "metrics"), query, options).then((answer) => (run.history.take(answer, 900), (run.range = range))));
    }
    await Promise.all(asked);
    return [name, run];
  }

  // --- showing -----------------------------------------------------------------------------------

  function arrange() {
    for (const [key, chart] of charts) {
      if (view.keys.includes(key)) continue;
      chart.destroy();
      charts.delete(key);
    }
    for (const key of view.keys) {
      if (!charts.has(key)) charts.set(key, chartOf(key));
    }
    fill(grid, view.keys.map((key) => charts.get(key).element));
  }

  function chartOf(key) {
    const menu = menuButton(`${compared()[key].label}: more`, () => [
      { text: "Save as PNG", onclick: () => charts.get(key).save("png", `compare-${key}`) },
      { text: "Save as SVG", onclick: () => charts.get(key).save("svg", `compare-${key}`) },
      { text: "Hide", onclick: () => set({ keys: view.keys.filter((k) => k !== key) }) },
    ]);
    return createChart({
      title: compared()[key].label, note: compared()[key].unit, height: 300, sync: "compare", outside: true, menu: menu.element,
      format: (v) => significant(v, 5), onZoom: (from, to) => set({ zoom: { from, to } }), onReset: () => set({ zoom: null }), onKey,
    });
  }

  function onKey(pressed, at, shown) {
    const factor = { "+": 0.5, "=": 0.5, "-": 2 }[pressed];
    if (pressed === "0" || pressed === "Escape") set({ zoom: null });
    else if (factor && shown) {
      const { from, to } = shown;
      const middle = at ?? (from + to) / 2;
      set({ zoom: { from: middle - ((to - from) * factor) / 2, to: middle + ((to - from) * factor) / 2 } });
    } else return false;
    return true;
  }

  function draw() {
    const runs = view.names.map((name) => {
      const { history, ...run } = known.get(name) ?? {};
      return { name, ...colours.get(name), ...run, history: history?.known };
    }).filter((r) => r.detail);
    for (const [key, chart] of charts) chart.show(comparePicture(runs, { key, mode: view.mode, zoom: view.zoom, look: view.look }));
    fill(numbers, standings(runs), settings(runs));
  }

  function unmount() {
    control.abort();
    close();
    clearInterval(refresh);
    for (const chart of charts.values()) chart.destroy();
  }

  function update() {
    const next = viewOf(here().query);
    if (next.names.join() === view.names.join()) return;
    Object.assign(view, next);
    drawPicks();
    load();
  }

  return { unmount, update };
}

/** The view as the address has it. */
function viewOf({ runs = "", keys = "", key = "", x, y, from, to }) {
  const named = runs.split(",").filter(Boolean);
  const wanted = (keys || key).split(",").filter((k) => k in compared());
  const zoom = from && to && Number(to) > Number(from) ? { from: Number(from), to: Number(to) } : null;
  return {
    names: named.slice(0, MOST), dropped: Math.max(0, named.length - MOST), keys: wanted.length ? wanted : FIRST_KEYS,
    mode: MODES.some(([mode]) => mode === x) ? x : "step", look: ["full", "log"].includes(y) ? y : "focus", zoom,
  };
}

function queryOf({ names, keys, mode, look, zoom }) {
  return {
    runs: names.join(","), keys: keys.join() === FIRST_KEYS.join() ? null : keys.join(","), key: null, x: mode,
    y: look === "focus" ? null : look, from: zoom ? Number(zoom.from.toPrecision(6)) : null, to: zoom ? Number(zoom.to.toPrecision(6)) : null,
  };
}

/** The zoom is in the axis' unit; each run has its own steps for it. Time is cut by the chart. */
function stepsOf({ zoom, mode }, { detail }) {
  const { tokens } = detail.plan.batch;
  const factor = { step: 1, tokens, flops: tokens * detail.plan.horizon.flops_per_token }[mode];
  if (!zoom || !factor) return {};
  return { from_step: Math.max(0, Math.floor(zoom.from / factor)), to_step: Math.max(1, Math.ceil(zoom.to / factor) + 1) };
}

function standings(runs) {
  const baseline = runs.length > 1 && qualityCurve(runs[0]);
  const rows = runs.map((run) => ({ ...run, saved: baseline ? savedBy(run, baseline, run === runs[0]) : null }));
  return table("The compared runs", COLUMNS, rows, { empty: "Choose runs above." });
}

function savedBy(run, baseline, isBaseline) {
  if (isBaseline) return { text: "baseline", why: "The other runs are compared with this one." };
  const { identity, points } = qualityCurve(run);
  if (!points.length || identity !== baseline.identity) return { text: "–", why: "No val bpb under the baseline's settings." };
  const multiplier = computeMultiplier(baseline.points, points.at(-1));
  if (multiplier === null) return { text: "–", why: "Its val bpb lies outside of the baseline's curve: nothing is extrapolated." };
  return { text: `× ${significant(multiplier, 3)}`, why: `The baseline needs ${significant(multiplier, 3)} times the compute for the same val bpb.` };
}

/** Only what differs; what follows from the name does not count. */
function settings(runs) {
  if (runs.length < 2) return null;
  const rows = differences(runs.map((run) => run.detail.spec));
  const write = (value) => (value === undefined || value === null ? "–" : typeof value === "string" ? value : typeof value === "number" ? significant(value, 6) : JSON.stringify(value));
  const columns = [
    { label: "Setting", cell: ([key]) => h("code", {}, key) },
    ...runs.map((run, i) => ({ label: run.name, num: true, cell: ([, values]) => userText(write(values[i])) })),
  ];
  return [h("h2", {}, "Settings that differ"), table("Settings that differ", columns, rows, { empty: "These runs have identical settings." })];
}

const COLUMNS = [
  { label: "Run", cell: ({ name, colour, dash }) => [h("i.key", { dataset: { dash: dash ? "yes" : "no" }, style: { "--key": `var(--${colour})` } }), h("a", { href: link(["runs", name]) }, userText(name))] },
  { label: "State", cell: ({ detail }) => stateBadge(detail.state) },
  { label: "Step", num: true, cell: ({ detail }) => `${integer(detail.step)} / ${integer(detail.end_step)}` },
  { get label() { return metric("loss_smooth").label; }, num: true, cell: ({ detail }) => loss(detail.loss_smooth ?? detail.loss) },
  { get label() { return titleOf(evaluation("bpb")); }, num: true, cell: ({ detail }) => bpb(detail.val_bpb) },
  { label: "Compute multiplier", num: true, cell: ({ saved }) => h("span", { title: saved?.why ?? "" }, saved?.text ?? "–") },
  { label: "Parameters", num: true, cell: ({ detail }) => count(detail.plan.parameters.total) },
  { label: "Tokens", num: true, cell: ({ detail }) => count(detail.tokens_seen) },
  { label: "FLOP", num: true, cell: ({ detail }) => exponent(detail.tokens_seen * detail.plan.horizon.flops_per_token) },
  { label: "Training time", num: true, cell: ({ detail }) => duration(detail.training_seconds) },
];
