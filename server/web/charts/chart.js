/**
 * One chart on uPlot: lines over a shared horizontal axis, with a read-out above it instead of a
 * floating legend, zoom by drag or keyboard, and colours from the style sheet.
 *
 * @typedef {Object} Line
 * @property {string} label
 * @property {string} colour name of a style variable
 * @property {(number|null)[]} values
 * @property {number} [width]
 * @property {boolean} [dash]
 * @property {boolean} [points] draw each value as a dot
 * @property {boolean} [joined] draw through missing values
 * @property {boolean} [quiet] not in the read-out
 * @property {{low: (number|null)[], high: (number|null)[]}} [band] least and greatest of each bin
 * @property {"y"|"y2"} [scale]
 * @property {(v: number) => string} [format]
 *
 * @typedef {Object} Picture
 * @property {number[]} x in the axis' own unit
 * @property {Line[]} lines
 * @property {[number, number]} range of x
 * @property {[number, number]|null} [yRange] null: by the values
 * @property {boolean} [log]
 * @property {import("./axis.js").Axis} axis
 * @property {import("./marks.js").Band[]} [bands]
 * @property {import("./marks.js").Edge[]} [edges]
 */

import uPlot from "../vendor/uplot/uPlot.esm.js";
import { h, fill, setText } from "../dom.js";
import { significant } from "../format.js";
import { drawBands, drawEdges, drawPeaks } from "./marks.js";
import { colour, font, onThemeChange } from "./palette.js";

/**
 * @param {{title: string, note?: string, height?: number, sync?: string, format?: (v: number) => string,
 *   labels?: boolean, onZoom?: (from: number, to: number) => void, onKey?: (key: string) => boolean}} options
 */
export function createChart(options) {
  const readout = h("dl.readout");
  const note = h("span.chart-note", {}, options.note ?? "");
  const stage = h("div.chart-stage", {
    tabindex: 0, role: "group", onkeydown, style: { "--height": `${options.height ?? 180}px` },
    "aria-label": `${options.title}: chart`,
    "aria-description": "Left and right arrows read values, plus and minus zoom, 0 shows all",
  });
  const empty = h("p.chart-empty", {}, "No values yet");
  const element = h("section.chart", { "aria-label": options.title },
    h("header", {}, h("h3", {}, options.title), note, readout), stage);
  stage.append(empty);

  /** @type {Picture|null} */
  let picture = null;
  let plot = null;
  let structure = "";
  let cells = [];
  const resized = new ResizeObserver(() => {
    if (plot && stage.clientWidth) plot.setSize(size());
  });
  resized.observe(stage);
  const stopTheme = onThemeChange(() => rebuild());

  const size = () => ({ width: Math.max(80, stage.clientWidth), height: Math.max(80, stage.clientHeight) });
  const shown = () => picture.lines.filter((line) => !line.quiet);

  /** Shows a picture; the plot is only made anew when its lines are others. @param {Picture} next */
  function show(next) {
    picture = next;
    empty.hidden = next.x.length > 0;
    const key = JSON.stringify([next.axis.mode, next.log, next.lines.map((l) => [l.label, l.dash, l.scale, !!l.band])]);
    if (!plot || key !== structure) {
      structure = key;
      rebuild();
    } else {
      plot.setData(dataOf(next), false);
      rescale();
      read(plot.cursor.idx);
    }
  }

  function rebuild() {
    if (!picture) return;
    plot?.destroy();
    if (!empty.hidden) stage.append(empty);
    plot = new uPlot(uplotOptions(picture, size(), options, hooks, () => picture.yRange), dataOf(picture), stage);
    cells = shown().map((line) => readoutCell(line));
    fill(readout, cells.map((c) => c.element));
    rescale();
    read(null);
  }

  function rescale() {
    const [min, max] = picture.range;
    if (Number.isFinite(min) && max > min) plot.setScale("x", { min, max });
  }

  const hooks = {
    drawClear: [(u) => drawBands(u, picture.bands ?? [])],
    draw: [(u) => {
      drawEdges(u, picture.edges ?? [], options.labels);
      const banded = picture.yRange && picture.lines.find((line) => line.band);
      if (banded) drawPeaks(u, picture.x, banded.band.high);
    }],
    setCursor: [(u) => read(u.cursor.idx)],
    setSelect: [(u) => {
      if (u.select.width < 6) return;
      const from = u.posToVal(u.select.left, "x");
      const to = u.posToVal(u.select.left + u.select.width, "x");
      u.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
      options.onZoom?.(picture.axis.toStep(from), picture.axis.toStep(to));
    }],
  };

  /** The values under the cursor, or the last ones. */
  function read(index) {
    if (!picture) return;
    shown().forEach((line, i) => {
      const at = index === null || index === undefined ? lastKnown(line.values) : index;
      const value = at === null ? null : line.values[at];
      setText(cells[i].value, (line.format ?? options.format ?? significant)(value));
    });
    const where = index === null || index === undefined ? null : picture.x[index];
    setText(note, where === null || where === undefined ? options.note ?? "" : picture.axis.format(where));
  }

  function onkeydown(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const moved = { ArrowLeft: -1, ArrowRight: 1, PageUp: -20, PageDown: 20 }[event.key];
    if (moved && plot && picture.x.length) moveCursor(moved * (event.shiftKey ? 10 : 1));
    else if (!options.onKey?.(event.key)) return;
    event.preventDefault();
  }

  function moveCursor(by) {
    const at = plot.cursor.idx ?? picture.x.length - 1;
    const index = Math.max(0, Math.min(picture.x.length - 1, at + by));
    plot.setCursor({ left: plot.valToPos(picture.x[index], "x"), top: 10 });
    const said = shown().map((l) => `${l.label} ${(l.format ?? options.format ?? significant)(l.values[index])}`);
    stage.setAttribute("aria-label", `${options.title} at ${picture.axis.format(picture.x[index])}: ${said.join(", ")}`);
  }

  function setNote(text) {
    options.note = text;
    if (plot?.cursor.idx === null || plot?.cursor.idx === undefined) setText(note, text);
  }

  function destroy() {
    resized.disconnect();
    stopTheme();
    plot?.destroy();
  }

  return { element, show, setNote, destroy, width: () => stage.clientWidth };
}

function readoutCell(line) {
  const value = h("dd", {}, "–");
  const key = h("i.key", { dataset: { dash: line.dash ? "yes" : "no" }, style: { "--key": `var(--${line.colour})` } });
  return { value, element: h("div", {}, h("dt", {}, key, line.label), value) };
}

function lastKnown(values) {
  for (let i = values.length - 1; i >= 0; i--) if (values[i] !== null && values[i] !== undefined) return i;
  return null;
}

/** uPlot wants columns: x, then each line, a band as two invisible ones. */
function dataOf({ x, lines }) {
  return [x, ...lines.flatMap((line) => (line.band ? [line.values, line.band.high, line.band.low] : [line.values]))];
}

function uplotOptions(picture, { width, height }, options, hooks, yRange) {
  const series = [{}];
  const bands = [];
  for (const line of picture.lines) {
    const stroke = colour(line.colour);
    const at = series.push({
      label: line.label, stroke, width: line.width ?? 1.5, scale: line.scale ?? "y",
      dash: line.dash ? [5, 5] : undefined, spanGaps: line.joined ?? false,
      points: line.points ? { show: true, size: 5, fill: stroke, stroke, width: 0 } : { show: false },
    });
    if (!line.band) continue;
    const edge = { scale: line.scale ?? "y", stroke: "transparent", width: 0, points: { show: false } };
    series.push({ ...edge }, { ...edge });
    bands.push({ series: [at, at + 1], fill: faint(stroke) });
  }
  return {
    width, height, series, bands, hooks,
    legend: { show: false },
    padding: [8, 26, 0, 0],
    scales: scalesOf(picture, yRange),
    axes: axesOf(picture, options),
    cursor: {
      y: false,
      drag: { x: true, y: false, setScale: false },
      points: { size: 6, width: 0 },
      sync: options.sync ? { key: options.sync, scales: ["x", null], setSeries: false } : undefined,
    },
  };
}

/** A band in the colour of its line. */
const faint = (stroke) => (stroke.startsWith("#") ? `${stroke}2b` : colour("band"));

function decimalsOf(increment) {
  let decimals = 0;
  while (decimals < 8 && Math.abs(increment * 10 ** decimals - Math.round(increment * 10 ** decimals)) > 1e-6) decimals++;
  return decimals;
}

/** Tick labels with as many decimals as the distance between ticks needs. */
function labelsOf(format) {
  return (u, ticks, axis, space, increment) => {
    const decimals = decimalsOf(increment);
    const write = format ?? ((v) => v.toLocaleString("en-US", { minimumFractionDigits: decimals, maximumFractionDigits: decimals }));
    return ticks.map((v) => (v === null ? "" : write(v, decimals)));
  };
}

function scalesOf({ axis, log, lines }, yRange) {
  const scales = { x: { time: axis.isTime, auto: false }, y: { distr: log ? 3 : 1, range: rangeOf("y") } };
  if (lines.some((l) => l.scale === "y2")) scales.y2 = { range: rangeOf("y2") };
  return scales;

  function rangeOf(name) {
    return (u, min, max) => {
      const fixedRange = name === "y" ? yRange() : null;
      if (fixedRange) return fixedRange;
      if (min === null || max === null || !Number.isFinite(min)) return log ? [1, 10] : [0, 1];
      if (log) return [min / 1.05, max * 1.05];
      const pad = Math.max((max - min) * 0.08, Math.abs(max) * 0.004) || 1;
      return [min >= 0 && min - pad < 0 ? 0 : min - pad, max + pad];
    };
  }
}

function axesOf(picture, options) {
  const ink = colour("ink-3");
  const em = parseFloat(getComputedStyle(document.documentElement).fontSize);
  const roomy = (u, axis, low, high, pixels) => Math.max(2.2 * em, pixels / 8);
  const base = {
    stroke: ink, font: font(), ticks: { show: false },
    grid: { stroke: colour("grid"), width: 1 }, border: { show: false },
  };
  const xValues = picture.axis.isTime ? {} : { values: (u, ticks) => ticks.map(picture.axis.format) };
  const axes = [
    { ...base, ...xValues, size: Math.round(1.7 * em), gap: 4, space: (picture.axis.mode === "step" ? 5 : 6) * em, grid: { show: false } },
    { ...base, scale: "y", size: Math.round(3.6 * em), gap: 6, space: roomy, values: labelsOf(options.tick) },
  ];
  if (picture.lines.some((l) => l.scale === "y2")) {
    axes.push({
      ...base, scale: "y2", side: 1, size: Math.round(3 * em), gap: 6, space: roomy, grid: { show: false },
      values: labelsOf(),
    });
  }
  return axes;
}
