/** The run's charts: one query for all of them, made again for each zoom; then only what is new. */

import { get, list, path } from "../../api.js";
import { breaksOf, makeAxis, MODES } from "../../charts/axis.js";
import { createChart } from "../../charts/chart.js";
import { offer } from "../../charts/export.js";
import { createHistory, drawnLength } from "../../charts/history.js";
import { bandedOf, keysOf, panels } from "../../charts/panels.js";
import { bandsOf, edgesOf, frameOf, pictureOf } from "../../charts/pictures.js";
import { menuButton } from "../../components/menu.js";
import { createOrder } from "../../components/panel-order.js";
import { problemBox } from "../../components/problem.js";
import { segmented } from "../../components/segmented.js";
import { fill, h, setText } from "../../dom.js";
import { count, duration, fixed, flops, integer, percent, when } from "../../format.js";
import { createLoader } from "../../loader.js";
import * as prefs from "../../prefs.js";
import { here, replaceQuery } from "../../router.js";

const PLANNED_POINTS = 400; // of the schedule ahead, for each phase
const TAIL_MILLISECONDS = 3_000;
const FRAME_MILLISECONDS = 60_000; // phases, attempts and evaluations come by events too

export function mount(root, run) {
  const query = here().query;
  const view = {
    mode: query.x ?? prefs.read("axis", "step"),
    look: query.y ?? prefs.read("look", "focus"),
    smoothing: Number(prefs.read("smoothing", "0")) || 0,
    logX: prefs.read("logx", "no") === "yes",
    zoom: zoomOf(query),
  };
  const shownPanels = panels();
  const wanted = { keys: keysOf(shownPanels).join(","), bands: bandedOf(shownPanels).join(","), columns: true };
  const ahead = { ...wanted, planned: PLANNED_POINTS };
  const history = createHistory();
  const other = { phases: [], attempts: [], evaluations: [] };
  const control = new AbortController();
  const order = createOrder(shownPanels.map((panel) => panel.id));
  let clock = [];
  let clockBreaks = new Set();
  let maximised = null;

  const charts = new Map(shownPanels.map((panel) => [panel.id, { panel, chart: createChart({
    title: panel.title, note: panel.unit ?? "", height: panel.height ?? 170, sync: `run-${run.detail.id}`,
    format: panel.format, tick: panel.tick, labels: panel.id === "loss", menu: panelMenu(panel).element,
    describe, onZoom, onKey, onReset: () => zoomTo(null),
  }) }]));
  const refused = h("div");
  const status = h("p.chart-status", { role: "status" });
  const edgeList = h("ul.edges");
  const grid = h("div.charts");
  const smoothing = h("input", { type: "range", min: 0, max: 0.99, step: 0.01, value: String(view.smoothing), "aria-label": "Smoothing", oninput: () => smoothBy(Number(smoothing.value)) });
  const weight = h("output", {}, view.smoothing ? fixed(view.smoothing, 2) : "off");
  const toolbar = h("div.chart-tools", {},
    segmented("Horizontal axis", MODES, view.mode, (mode) => change({ mode }, { x: mode }, "axis", mode)),
    segmented("Loss", [["focus", "Focus"], ["full", "Full"], ["log", "Log"]], view.look,
      (look) => change({ look }, { y: look }, "look", look)),
    h("label.slider", {}, h("span", {}, "Smoothing"), smoothing, weight),
    h("div.zoom", { role: "group", "aria-label": "Range" },
      tool("All", () => zoomTo(null)),
      tool("Last 10 %", () => zoomTo(lastPart(Math.round(reached() * 0.1)))),
      tool("Last 1,000", () => zoomTo(lastPart(1000))),
      tool("−", () => zoomBy(2), "Zoom out"),
      tool("+", () => zoomBy(0.5), "Zoom in")),
    h("span.spring"),
    menuButton("Panels", panelItems, { text: "Panels", class: "tool" }).element,
    menuButton("Download what is shown", () => Object.keys(DOWNLOADS).map((name) => ({ text: name, onclick: () => download(name) })), { text: "Download", class: "tool" }).element);
  fill(root, toolbar, refused, h("div.chart-heads", {}, edgeList, status), grid);
  arrange();

  const metrics = createLoader({ host: status, refused, ask: askMetrics, show: showMetrics });
  const frame = createLoader({ host: edgeList, refused, ask: askFrame, show: (answers) => (Object.assign(other, answers), draw()) });
  const reached = () => Math.max(1, run.progress?.step ?? run.detail.step);
  let tailing = false;
  let answered = false; // the first answer is on its way: it has what is new too
  let tailTimer = 0;
  const slow = setInterval(() => !document.hidden && run.isActive() && frame.load(), FRAME_MILLISECONDS);
  addEventListener("keydown", onEscape);
  frame.load();
  metrics.load();

  // --- asking ------------------------------------------------------------------------------------

  async function askMetrics() {
    const width = Math.max(300, Math.min(2000, charts.get("loss").chart.width() || 800));
    const { zoom } = view;
    const answer = await get(path("runs", run.detail.id, "metrics"), { ...ahead, max_points: width, ...stepsOf(zoom) }, { signal: control.signal });
    return { answer, zoom, width };
  }

  function showMetrics({ answer, zoom, width }) {
    answered = true;
    history.take(answer, width);
    if (!zoom || !clock.length) keepClock();
    draw();
  }

  /** What is new since the last answer, some hundred bytes. Not while a part of the past is shown. */
  async function askTail() {
    const tail = history.tailQuery();
    if (tailing || view.zoom || document.hidden || !answered) return;
    if (!tail) return metrics.load();
    if (history.reaches(reached())) return;
    tailing = true;
    try {
      const answer = await get(path("runs", run.detail.id, "metrics"), { ...wanted, max_points: 2000, ...tail }, { signal: control.signal });
      if (view.zoom) return;
      if (!history.takeTail(answer, tail.from_step)) metrics.load();
      else (keepClock(), draw());
    } catch {
      // the next step asks again; the banner says it when nobody answers
    } finally {
      tailing = false;
    }
  }

  function keepClock() {
    const { steps, seconds } = history.known;
    clock = steps.map((step, i) => [step, seconds[i]]);
    clockBreaks = breaksOf(history.known);
  }

  async function askFrame() {
    const of = (what) => list(path("runs", run.detail.id, what), {}, { signal: control.signal });
    const [phases, attempts, evaluations] = await Promise.all([of("phases"), of("attempts"), of("evaluations")]);
    return { phases, attempts, evaluations };
  }

  function onProgress() {
    clearTimeout(tailTimer);
    tailTimer = setTimeout(askTail, history.known.steps.length ? TAIL_MILLISECONDS - (Date.now() % TAIL_MILLISECONDS) : 0);
  }

  // --- showing -----------------------------------------------------------------------------------

  function axisNow() {
    const { plan } = run.detail;
    return makeAxis(view.mode, {
      tokensPerStep: plan.batch.tokens, flopsPerToken: plan.horizon.flops_per_token, clock, breaks: clockBreaks,
    });
  }

  function draw() {
    const { known } = history;
    const axis = axisNow();
    const breaks = breaksOf(known);
    const source = {
      ...other, columns: known.columns, axis, zoom: view.zoom, look: view.look, step: reached(), log: order.state.log, logX: view.logX,
      frame: frameOf(known, drawnLength(known, run.isActive() && !view.zoom), axis, breaks),
      smoothing: view.smoothing, planned: known.planned,
    };
    const edges = edgesOf(known.segments, other.attempts, other.phases, run.yields);
    // what begins after a pause begins where its first step was taken, not somewhere in the pause
    const firstAt = (step) => clock.find(([known]) => known >= step)?.[1];
    const bands = bandsOf(known.segments).map((b) => ({ from: axis.toX(b.from, firstAt(b.from)), to: axis.toX(b.to) }));
    const marks = edges.map((e) => ({ ...e, x: axis.toX(e.step, firstAt(e.step)) }));
    for (const { panel, chart } of charts.values()) {
      if (!order.state.hidden.has(panel.id)) chart.show({ ...pictureOf(panel, source), bands, edges: marks });
    }
    charts.get("mfu").chart.setNote(peakNote(run.progress));
    drawEdgeList(edges);
    setText(status, statusOf(known));
  }

  function statusOf({ rawPoints, binSteps }) {
    if (!rawPoints) return "no steps yet";
    return `${integer(rawPoints)} steps, ${binSteps > 1 ? `${integer(binSteps)} per point` : "each drawn"}`;
  }

  /** The head of the tooltip: the same place in the other units. */
  function describe(x) {
    const step = Math.round(axisNow().toStep(x));
    const tokens = `${count(step * run.detail.plan.batch.tokens)} tokens`;
    const at = clock.length ? axisAt(step) : "";
    return [view.mode === "step" ? tokens : `step ${integer(step)}, ${tokens}`, at].filter(Boolean);
  }

  function axisAt(step) {
    const seconds = makeAxis("time", { tokensPerStep: 1, flopsPerToken: 1, clock }).toX(step);
    const spent = makeAxis("training", { tokensPerStep: 1, flopsPerToken: 1, clock, breaks: clockBreaks }).toX(step);
    return `${when(seconds)}, after ${duration(spent)} of training`;
  }

  function drawEdgeList(edges) {
    fill(edgeList, edges.slice(-12).map((edge) => h("li", {},
      h("button.edge", { type: "button", dataset: { tone: edge.tone }, onclick: () => zoomAround(edge.step) },
        h("b", {}, integer(edge.step)), " ", edge.text))));
  }

  // --- panels ------------------------------------------------------------------------------------

  function arrange() {
    const shown = order.state.order.filter((id) => !order.state.hidden.has(id));
    for (const { panel, chart } of charts.values()) chart.element.classList.toggle("wide", Boolean(panel.wide) && shown[0] === panel.id);
    fill(grid, shown.map((id) => charts.get(id).chart.element));
    if (history.known.steps.length) draw();
  }

  function panelMenu(panel) {
    return menuButton(`${panel.title}: more`, () => {
      const isLog = panel.id === "loss" ? view.look === "log" : order.state.log.has(panel.id);
      return [
        { text: maximised === panel.id ? "Restore" : "Maximise", onclick: () => maximise(maximised === panel.id ? null : panel.id) },
        panel.id === "loss" ? null : { text: "Logarithmic", checked: isLog, onclick: () => (order.toggle("log", panel.id), draw()) },
        { text: "Logarithmic steps (all)", checked: view.logX, onclick: toggleLogX },
        { text: "Move left", onclick: () => (order.move(panel.id, -1), arrange()) },
        { text: "Move right", onclick: () => (order.move(panel.id, 1), arrange()) },
        { text: "Save as PNG", onclick: () => save(panel, "png") },
        { text: "Save as SVG", onclick: () => save(panel, "svg") },
        { text: "Hide", onclick: () => (order.toggle("hidden", panel.id), arrange()) },
      ].filter(Boolean);
    });
  }

  const save = (panel, kind) => charts.get(panel.id).chart.save(kind, `${run.detail.name}-${panel.id}`);

  function panelItems() {
    const shown = shownPanels.map(({ id, title }) => ({
      text: title, checked: !order.state.hidden.has(id), onclick: () => (order.toggle("hidden", id), arrange()),
    }));
    return [...shown, { text: "Reset", onclick: () => (order.reset(), arrange()) }];
  }

  function maximise(id) {
    maximised = id;
    for (const [own, { chart }] of charts) chart.element.classList.toggle("maximised", own === id);
    document.documentElement.classList.toggle("has-maximised", id !== null);
  }

  function onEscape(event) {
    if (event.key === "Escape" && maximised) maximise(null);
  }

  function toggleLogX() {
    view.logX = !view.logX;
    prefs.write("logx", view.logX ? "yes" : "no");
    draw();
  }

  function smoothBy(by) {
    view.smoothing = by;
    setText(weight, by ? fixed(by, 2) : "off");
    prefs.write("smoothing", String(by));
    draw();
  }

  // --- range -------------------------------------------------------------------------------------

  function change(patch, inQuery, prefKey, prefValue) {
    Object.assign(view, patch);
    prefs.write(prefKey, prefValue);
    replaceQuery(inQuery);
    draw();
  }

  function zoomTo(zoom) {
    view.zoom = zoom;
    replaceQuery({ from: zoom ? Math.round(zoom.from) : null, to: zoom ? Math.round(zoom.to) : null });
    draw();
    metrics.load();
  }

  /** A range beyond the first or the last step is moved back as it is: a pan stops at the edge. */
  function onZoom(from, to) {
    const width = Math.max(2, to - from);
    const begin = Math.max(0, Math.min(from, Math.max(reached(), run.detail.end_step) - width));
    if (begin === 0 && width >= 0.99 * reached()) return zoomTo(null); // a run goes on while it is panned
    zoomTo({ from: Math.floor(begin), to: Math.ceil(begin + width) });
  }

  function zoomBy(factor, at = null) {
    const { from, to } = view.zoom ?? { from: 0, to: reached() };
    const half = Math.max(4, ((to - from) * factor) / 2);
    const middle = at ?? (from + to) / 2;
    if (middle - half <= 0 && middle + half >= reached()) return zoomTo(null);
    onZoom(Math.max(0, middle - half), middle + half);
  }

  const lastPart = (steps) => ({ from: Math.max(0, reached() - Math.max(10, steps)), to: reached() });
  const zoomAround = (step) => onZoom(step - Math.max(50, reached() * 0.02), step + Math.max(50, reached() * 0.02));

  function onKey(key, at) {
    if (key === "+" || key === "=") zoomBy(0.5, at);
    else if (key === "-") zoomBy(2, at);
    else if (key === "0" || (key === "Escape" && !maximised)) zoomTo(null);
    else return false;
    return true;
  }

  /** Every key over the range that is shown, in the finest bins the daemon gives. */
  async function download(name) {
    const { type, suffix, query: more } = DOWNLOADS[name];
    try {
      const content = await get(path("runs", run.detail.id, "metrics"), { max_points: 20_000, ...more, ...stepsOf(view.zoom) }, { accept: type });
      offer(new Blob([content], { type }), `${run.detail.name}-metrics.${suffix}`);
    } catch (problem) {
      fill(refused, problemBox(problem));
    }
  }

  function unmount() {
    control.abort();
    metrics.close();
    frame.close();
    clearInterval(slow);
    clearTimeout(tailTimer);
    removeEventListener("keydown", onEscape);
    maximise(null);
    for (const { chart } of charts.values()) chart.destroy();
  }

  return { unmount, onProgress, onYields: () => history.known.steps.length && draw(), onEvent: (event) => LIFE.has(event.kind) && (frame.load(), metrics.load()) };
}

const DOWNLOADS = {
  CSV: { type: "text/csv", suffix: "csv", query: { wide: true } },
  "CSV, one row per value": { type: "text/csv", suffix: "long.csv", query: {} },
  Parquet: { type: "application/vnd.apache.parquet", suffix: "parquet", query: {} },
};
const LIFE = new Set(["state", "evaluation", "resumed", "extend", "phase", "ended"]);

function tool(text, onclick, label) {
  return h("button.tool", { type: "button", onclick, "aria-label": label ?? null }, text);
}

function stepsOf(zoom) {
  return zoom ? { from_step: Math.max(0, Math.floor(zoom.from)), to_step: Math.ceil(zoom.to) + 1 } : {};
}

function zoomOf({ from, to }) {
  const zoom = { from: Number(from), to: Number(to) };
  return from && to && zoom.to > zoom.from ? zoom : null;
}

function peakNote(progress) {
  const peak = progress?.peak_flops;
  if (!peak) return "";
  const causal = progress.mfu_causal === null ? "" : `; ${percent(progress.mfu_causal, 1)} causal`;
  return `of ${flops(peak.value)}/s, ${peak.source}${causal}`;
}
