/** The run's charts: one query for all of them, made again for each zoom; the server bins. */

import { get, list, path } from "../../api.js";
import { makeAxis, MODES } from "../../charts/axis.js";
import { createChart } from "../../charts/chart.js";
import { KEYS, PANELS } from "../../charts/panels.js";
import { bandsOf, edgesOf, pictureOf } from "../../charts/pictures.js";
import { problemBox } from "../../components/problem.js";
import { segmented } from "../../components/segmented.js";
import { fill, h, setText } from "../../dom.js";
import { exponent, integer, percent } from "../../format.js";
import { createLoader } from "../../loader.js";
import * as prefs from "../../prefs.js";
import { here, replaceQuery } from "../../router.js";

const REFRESH_MILLISECONDS = 5_000;
const SLOW_REFRESH_MILLISECONDS = 20_000; // phases, attempts and evaluations change rarely

export function mount(root, run) {
  const query = here().query;
  const view = {
    mode: query.x ?? prefs.read("axis", "step"),
    look: query.y ?? prefs.read("look", "focus"),
    zoom: zoomOf(query),
  };
  const known = { series: new Map(), segments: [], phases: [], attempts: [], evaluations: [], binSteps: 1, rawPoints: 0 };
  const control = new AbortController();

  const charts = PANELS.map((panel) => ({ panel, chart: createChart({
    title: panel.title, note: panel.unit ?? "", height: panel.height ?? 170, sync: `run-${run.detail.id}`,
    format: panel.format, tick: panel.tick, labels: panel.id === "loss", onZoom, onKey,
  }) }));
  const refused = h("div");
  const status = h("p.chart-status", { role: "status" });
  const edgeList = h("ul.edges");
  const toolbar = h("div.chart-tools", {},
    segmented("Horizontal axis", MODES, view.mode, (mode) => change({ mode }, { x: mode }, "axis", mode)),
    segmented("Loss", [["focus", "Focus"], ["full", "Full"], ["log", "Log"]], view.look,
      (look) => change({ look }, { y: look }, "look", look)),
    h("div.zoom", { role: "group", "aria-label": "Range" },
      tool("All", () => zoomTo(null)),
      tool("Last 10 %", () => zoomTo(lastPart(Math.round(reached() * 0.1)))),
      tool("Last 1,000", () => zoomTo(lastPart(1000))),
      tool("−", () => zoomBy(2), "Zoom out"),
      tool("+", () => zoomBy(0.5), "Zoom in")),
    h("span.spring"),
    status,
    h("div.zoom", { role: "group", "aria-label": "Download what is shown" }, Object.keys(DOWNLOADS).map((name) => tool(name, () => download(name)))));
  fill(root, toolbar, refused, edgeList,
    h("div.charts", {}, charts.map(({ panel, chart }) => {
      if (panel.wide) chart.element.classList.add("wide");
      return chart.element;
    })));

  const metrics = createLoader({ host: status, refused, ask: askMetrics, show: showMetrics });
  const frame = createLoader({ host: edgeList, refused, ask: askFrame, show: (answers) => (Object.assign(known, answers), draw()) });
  const reached = () => Math.max(1, run.progress?.step ?? run.detail.step);
  const fast = setInterval(() => !document.hidden && run.isActive() && metrics.load(), REFRESH_MILLISECONDS);
  const slow = setInterval(() => !document.hidden && run.isActive() && frame.load(), SLOW_REFRESH_MILLISECONDS);
  frame.load();
  metrics.load();

  async function askMetrics() {
    const width = Math.max(300, Math.min(2000, charts[0].chart.width() || 800));
    const { zoom } = view;
    const answer = await get(path("runs", run.detail.id, "metrics"), {
      keys: KEYS.join(","), max_points: width, ...stepsOf(zoom),
    }, { signal: control.signal });
    return { answer, zoom };
  }

  function showMetrics({ answer, zoom }) {
    known.series = new Map(answer.series.map((s) => [s.key, s.points]));
    if (!zoom || !known.clock) known.clock = clockOf(known.series);
    Object.assign(known, { segments: answer.segments, binSteps: answer.bin_steps, rawPoints: answer.raw_points });
    draw();
  }

  async function askFrame() {
    const of = (what) => list(path("runs", run.detail.id, what), {}, { signal: control.signal });
    const [phases, attempts, evaluations] = await Promise.all([of("phases"), of("attempts"), of("evaluations")]);
    return { phases, attempts, evaluations };
  }

  function draw() {
    const plan = run.detail.plan;
    const axis = makeAxis(view.mode, {
      tokensPerStep: plan.batch.tokens, flopsPerToken: plan.horizon.flops_per_token, clock: known.clock ?? [],
    });
    const source = { ...known, axis, zoom: view.zoom, look: view.look, step: reached() };
    const edges = edgesOf(known.segments, known.attempts, known.phases);
    const bands = bandsOf(known.segments).map((b) => ({ from: axis.toX(b.from), to: axis.toX(b.to) }));
    const marks = edges.map((e) => ({ ...e, x: axis.toX(e.step) }));
    for (const { panel, chart } of charts) {
      chart.show({ ...pictureOf(panel, source), bands, edges: marks });
    }
    charts.find((c) => c.panel.id === "mfu").chart.setNote(peakNote(run.progress));
    drawEdgeList(edges);
    setText(status, `${integer(known.rawPoints)} steps, ${known.binSteps > 1 ? `${known.binSteps} in a point` : "each drawn"}`);
  }

  function drawEdgeList(edges) {
    fill(edgeList, edges.slice(-12).map((edge) => h("li", {},
      h("button.edge", { type: "button", dataset: { tone: edge.tone }, onclick: () => zoomAround(edge.step) },
        h("b", {}, integer(edge.step)), " ", edge.text))));
  }

  /** A live message: the last point of each line moves on before the next query. */
  function onProgress(progress) {
    const { step } = progress;
    const points = known.series.get("loss");
    if (view.zoom || !points?.length || step <= points[points.length - 1][0]) return;
    const now = progress.last_step_at ?? Date.now() / 1000;
    for (const [key, value] of Object.entries(liveValues(progress))) {
      if (value !== null && value !== undefined) known.series.get(key)?.push([step, now, value, value, value]);
    }
    draw();
  }

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

  function onZoom(from, to) {
    if (to - from < 2) to = from + 2;
    zoomTo({ from: Math.max(0, Math.floor(from)), to: Math.ceil(to) });
  }

  function zoomBy(factor) {
    const { from, to } = view.zoom ?? { from: 0, to: reached() };
    const half = Math.max(4, ((to - from) * factor) / 2);
    const middle = (from + to) / 2;
    if (middle - half <= 0 && middle + half >= reached()) return zoomTo(null);
    onZoom(Math.max(0, middle - half), middle + half);
  }

  const lastPart = (steps) => ({ from: Math.max(0, reached() - Math.max(10, steps)), to: reached() });
  const zoomAround = (step) => onZoom(step - Math.max(50, reached() * 0.02), step + Math.max(50, reached() * 0.02));

  function onKey(key) {
    if (key === "+" || key === "=") zoomBy(0.5);
    else if (key === "-") zoomBy(2);
    else if (key === "0" || key === "Escape") zoomTo(null);
    else return false;
    return true;
  }

  /** Every key over the range that is shown, in the finest bins the daemon gives. */
  async function download(name) {
    const { type, suffix } = DOWNLOADS[name];
    try {
      const content = await get(path("runs", run.detail.id, "metrics"), { max_points: 20_000, ...stepsOf(view.zoom) }, { accept: type });
      const link = h("a", { href: URL.createObjectURL(new Blob([content], { type })), download: `${run.detail.name}-metrics.${suffix}` });
      link.click();
      URL.revokeObjectURL(link.href);
    } catch (problem) {
      fill(refused, problemBox(problem));
    }
  }

  function unmount() {
    control.abort();
    metrics.close();
    frame.close();
    clearInterval(fast);
    clearInterval(slow);
    charts.forEach(({ chart }) => chart.destroy());
  }

  return { unmount, onProgress, onEvent: (event) => LIFE.has(event.kind) && (frame.load(), metrics.load()) };
}

const DOWNLOADS = {
  CSV: { type: "text/csv", suffix: "csv" },
  Parquet: { type: "application/vnd.apache.parquet", suffix: "parquet" },
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

function clockOf(series) {
  return (series.get("loss") ?? []).map(([step, seconds]) => [step, seconds]);
}

function liveValues(p) {
  return {
    loss: p.loss, loss_smooth: p.loss_smooth, lr_multiplier: p.lr_multiplier, momentum: p.momentum,
    weight_decay: p.weight_decay, grad_norm: p.grad_norm, tokens_per_second: p.tokens_per_second, mfu: p.mfu,
    vram_reserved_bytes: p.vram_bytes?.reserved, power_watts: p.power_watts, temperature_celsius: p.temperature_celsius,
  };
}

function peakNote(progress) {
  const peak = progress?.peak_flops;
  if (!peak) return "";
  const causal = progress.mfu_causal === null ? "" : `; ${percent(progress.mfu_causal, 1)} causal`;
  return `of ${exponent(peak.value)} FLOP/s, ${peak.source}${causal}`;
}
