/**
 * One chart on uPlot: lines over a shared horizontal axis. The values stand in its head, those at the
 * pointer beside it; a drag zooms, shift-drag pans, the wheel zooms where the pointer is (while the
 * chart has the focus, or with Ctrl), a double-click shows all, keys do the same.
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
 * @property {boolean} [faint] behind its own smoothed line
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
 * @property {boolean} [logX]
 * @property {import("./axis.js").Axis} axis
 * @property {import("./marks.js").Band[]} [bands]
 * @property {import("./marks.js").Edge[]} [edges]
 * @property {{colour: string, side: "left"|"right"}[]} [beside] curves that end before the range or begin after it
 */

import uPlot from "../vendor/uplot/uPlot.esm.js";
import { h, fill, setText } from "../dom.js";
import { significant } from "../format.js";
import { savePng, saveSvg } from "./export.js";
import { drawBands, drawEdges, drawOutside, drawPeaks } from "./marks.js";
import { onThemeChange } from "./palette.js";
import { dataOf, uplotOptions } from "./scales.js";

const WHEEL_FACTOR = 1.25;
const WHEEL_SETTLE_MILLISECONDS = 150;

/**
 * @param {{title: string, note?: string, height?: number, sync?: string, format?: (v: number) => string,
 *   tick?: (v: number, decimals: number) => string, labels?: boolean, outside?: boolean, menu?: HTMLElement,
 *   describe?: (x: number) => string[], onZoom?: (from: number, to: number) => void,
 *   onReset?: () => void, onKey?: (key: string, at: number|null) => boolean}} options
 *   describe: lines for the head of the tooltip; outside: mark curves that lie out of view
 */
export function createChart(options) {
  const readout = h("dl.readout");
  const note = h("span.chart-note", {}, options.note ?? "");
  const stage = h("div.chart-stage", {
    tabindex: 0, role: "group", onkeydown, style: { "--height": `${options.height ?? 180}px` },
    "aria-label": `${options.title}: chart`,
    "aria-description": "Left and right arrows read values, plus and minus zoom at the cursor, 0 shows all",
  });
  const empty = h("p.chart-empty", {}, "No values yet");
  const tip = h("div.chart-tip", { hidden: true, role: "presentation" });
  const element = h("section.chart", { "aria-label": options.title },
    h("header", {}, h("h3", {}, options.title), note, readout, options.menu), stage);
  stage.append(empty, tip);
  stage.addEventListener("wheel", onWheel, { passive: false });
  stage.addEventListener("pointerleave", () => (tip.hidden = true));

  /** @type {Picture|null} */
  let picture = null;
  let plot = null;
  let structure = "";
  let cells = [];
  let wheelTimer = 0;
  let held = null; // {min, max} while the wheel turns or the plot is dragged: a new point does not take it back
  const resized = new ResizeObserver(fit);
  resized.observe(stage);
  const stopTheme = onThemeChange(() => rebuild());

  const size = () => ({ width: Math.max(80, stage.clientWidth), height: Math.max(80, stage.clientHeight) });
  const shown = () => picture.lines.filter((line) => !line.quiet && !line.faint);
  const write = (line) => line.format ?? options.format ?? significant;
  const written = (line, at) => (at === null ? "–" : write(line)(line.values[at]));

  /** Shows a picture; the plot is only made anew when its lines are others. @param {Picture} next */
  function show(next) {
    picture = next;
    empty.hidden = next.x.length > 0;
    const key = JSON.stringify([next.axis.mode, next.log, next.logX, next.x.length > 0, next.lines.map((l) => [l.label, l.colour, l.dash, l.scale, l.joined, l.faint, !!l.band, !!l.gaps])]);
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
    cells = shown().map((line) => readoutCell(line));
    fill(readout, cells.map((c) => c.element)); // before the plot: its lines take height from the stage
    plot = new uPlot(uplotOptions(picture, size(), options, hooks, bind, () => picture), dataOf(picture), stage);
    stage.append(empty, tip);
    rescale();
    read(null);
    requestAnimationFrame(fit); // charts in the same row may have changed its height since
  }

  function fit() {
    const { width, height } = size();
    if (plot && stage.clientWidth && (plot.width !== width || plot.height !== height)) plot.setSize({ width, height });
  }

  function rescale() {
    const [min, max] = held ? [held.min, held.max] : picture.range;
    if (Number.isFinite(min) && max > min) plot.setScale("x", { min, max });
  }

  const hooks = {
    drawClear: [(u) => drawBands(u, picture.bands ?? [])],
    draw: [(u) => {
      if (picture.x.length) drawEdges(u, picture.edges ?? [], options.labels);
      const banded = picture.yRange && picture.lines.find((line) => line.band);
      if (banded) drawPeaks(u, picture.x, banded.band.high);
      if (options.outside) drawOutside(u, picture);
    }],
    setCursor: [(u) => (read(u.cursor.idx), point(u))],
    setSelect: [(u) => {
      if (u.select.width < 6) return;
      const from = u.posToVal(u.select.left, "x");
      const to = u.posToVal(u.select.left + u.select.width, "x");
      u.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
      zoom(from, to);
    }],
  };

  const bind = {
    mousedown: (u, target, handler) => (event) => (event.shiftKey ? pan(u, event) : handler(event)),
    dblclick: () => () => options.onReset?.(),
  };

  const zoom = (from, to) => options.onZoom?.(picture.axis.toStep(from), picture.axis.toStep(to));

  function pan(u, start) {
    const { min, max } = u.scales.x;
    const perPixel = (max - min) / u.over.clientWidth;
    const move = (event) => {
      const by = (start.clientX - event.clientX) * perPixel;
      held = { min: min + by, max: max + by };
      u.setScale("x", held);
    };
    const end = () => {
      removeEventListener("mousemove", move);
      removeEventListener("mouseup", end);
      if (held) release();
    };
    addEventListener("mousemove", move);
    addEventListener("mouseup", end);
    return null;
  }

  /** The page scrolls as ever, unless one works in this chart. */
  function onWheel(event) {
    if (!plot || !options.onZoom || !(event.ctrlKey || event.metaKey || document.activeElement === stage)) return;
    event.preventDefault();
    const factor = event.deltaY > 0 ? WHEEL_FACTOR : 1 / WHEEL_FACTOR;
    const at = plot.posToVal(event.clientX - plot.over.getBoundingClientRect().left, "x");
    const { min, max } = held ?? plot.scales.x;
    held = { min: at - (at - min) * factor, max: at + (max - at) * factor };
    plot.setScale("x", held);
    clearTimeout(wheelTimer);
    wheelTimer = setTimeout(() => held && release(), WHEEL_SETTLE_MILLISECONDS);
  }

  function release() {
    const { min, max } = held;
    held = null;
    zoom(min, max);
  }

  /** The values under the cursor, or the last ones in view: nothing moves, only numbers change. */
  function read(index) {
    if (!picture) return;
    const isAt = index !== null && index !== undefined;
    shown().forEach((line, i) => {
      const at = isAt ? nearest(line.values, index) : lastKnown(line.values, picture);
      setText(cells[i].value, written(line, at));
    });
  }

  /** Beside the pointer: where, and each line's value. */
  function point(u) {
    const { idx, left, top } = u.cursor;
    const isHere = stage.matches(":hover") || document.activeElement === stage;
    tip.hidden = !isHere || idx === null || idx === undefined || left < 0 || !picture.x.length;
    if (tip.hidden) return;
    const x = picture.x[idx];
    const where = [picture.axis.format(x), ...(options.describe?.(x) ?? [])];
    fill(tip, where.map((text, i) => h(i ? "p.soft" : "p", {}, text)),
      h("dl", {}, shown().map((line) => {
        const at = nearest(line.values, idx);
        return at === null ? null : h("div", {}, h("dt", {}, h("i.key", { style: { "--key": `var(--${line.colour})` } }), line.label), h("dd", {}, write(line)(line.values[at])));
      })));
    const x0 = u.over.offsetLeft + left;
    const isRight = x0 > stage.clientWidth / 2;
    tip.style.setProperty("left", isRight ? "auto" : `${x0 + 14}px`);
    tip.style.setProperty("right", isRight ? `${stage.clientWidth - x0 + 14}px` : "auto");
    tip.style.setProperty("top", `${Math.max(0, Math.min(top - 10, stage.clientHeight - tip.offsetHeight - 4))}px`);
  }

  function onkeydown(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const moved = { ArrowLeft: -1, ArrowRight: 1, PageUp: -20, PageDown: 20 }[event.key];
    const index = plot?.cursor.idx;
    if (moved && plot && picture.x.length) moveCursor(moved * (event.shiftKey ? 10 : 1));
    else if (!options.onKey?.(event.key, index === null || index === undefined ? null : picture.axis.toStep(picture.x[index]), shownRange())) return;
    event.preventDefault();
  }

  /** In steps, as `onZoom` has it. */
  function shownRange() {
    const { min, max } = plot?.scales.x ?? {};
    return Number.isFinite(min) ? { from: picture.axis.toStep(min), to: picture.axis.toStep(max) } : null;
  }

  function moveCursor(by) {
    const at = plot.cursor.idx ?? picture.x.length - 1;
    const index = Math.max(0, Math.min(picture.x.length - 1, at + by));
    plot.setCursor({ left: plot.valToPos(picture.x[index], "x"), top: 10 });
    const said = shown().map((line) => `${line.label} ${written(line, nearest(line.values, index))}`);
    stage.setAttribute("aria-label", `${options.title} at ${picture.axis.format(picture.x[index])}: ${said.join(", ")}`);
  }

  function setNote(text) {
    setText(note, text);
    note.title = text;
  }

  /** @param {"png"|"svg"} kind */
  function save(kind, name) {
    if (plot) (kind === "png" ? savePng : saveSvg)(plot, picture, options.title, name);
  }

  function destroy() {
    resized.disconnect();
    clearTimeout(wheelTimer);
    stopTheme();
    plot?.destroy();
  }

  return { element, show, setNote, save, destroy, width: () => stage.clientWidth };
}

function readoutCell(line) {
  const value = h("dd", {}, "–");
  const key = h("i.key", { dataset: { dash: line.dash ? "yes" : "no" }, style: { "--key": `var(--${line.colour})` } });
  return { value, element: h("div", {}, h("dt", {}, key, line.label), value) };
}

const isKnown = (value) => value !== null && value !== undefined && Number.isFinite(value);

/** The last value in view; where none is in view, the last there is. */
function lastKnown(values, { x, range: [from, to] }) {
  let any = null;
  for (let i = values.length - 1; i >= 0; i--) {
    if (!isKnown(values[i])) continue;
    if (x[i] >= from && x[i] <= to) return i;
    any ??= i;
  }
  return any;
}

/** Lines of other steps share the axis: the value at an index, or the one before it. */
function nearest(values, index) {
  for (let i = index; i >= Math.max(0, index - 400); i--) if (isKnown(values[i])) return i;
  return null;
}
