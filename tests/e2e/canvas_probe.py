"""What charts draw, read back from the canvas: lines with their points, labels with places."""

from __future__ import annotations

from typing import Any

# Lines are Path2D (uPlot's), marks are paths of the context itself. What a chart draws anew
# replaces what it drew before.
INSTALL = """
(() => {
  const pen = CanvasRenderingContext2D.prototype;
  const drawn = new WeakMap(); // canvas -> {lines, texts, marks}
  const of = (ctx) => {
    if (!drawn.has(ctx.canvas)) drawn.set(ctx.canvas, { lines: [], texts: [], marks: [] });
    return drawn.get(ctx.canvas);
  };
  for (const [name, joined] of [["moveTo", false], ["lineTo", true]]) {
    const plain = Path2D.prototype[name];
    Path2D.prototype[name] = function (x, y) {
      (this.probed ??= []).push([x, y, joined]);
      return plain.call(this, x, y);
    };
    const direct = pen[name];
    pen[name] = function (x, y) {
      (this.probed ??= []).push([x, y, joined]);
      return direct.call(this, x, y);
    };
  }
  const { clearRect, stroke, fill, fillText, beginPath } = pen;
  pen.clearRect = function (...box) {
    drawn.delete(this.canvas);
    return clearRect.apply(this, box);
  };
  pen.beginPath = function () {
    this.probed = [];
    return beginPath.call(this);
  };
  pen.stroke = function (path) {
    const dash = this.getLineDash().length > 0;
    if (path?.probed) of(this).lines.push({ colour: this.strokeStyle, dash, points: path.probed });
    return path ? stroke.call(this, path) : stroke.call(this);
  };
  pen.fill = function (...path) {
    if (!path.length) of(this).marks.push({ colour: this.fillStyle, points: this.probed ?? [] });
    return fill.apply(this, path);
  };
  pen.fillText = function (text, x, y, ...rest) {
    const width = this.measureText(text).width;
    const left = x - { center: width / 2, right: width, end: width }[this.textAlign] || x;
    of(this).texts.push({ text: String(text), left, right: left + width, y });
    return fillText.call(this, text, x, y, ...rest);
  };
  globalThis.probedChart = (title) => {
    const charts = [...document.querySelectorAll("section.chart")];
    const canvas = charts.find((one) => !title || one.ariaLabel === title)?.querySelector("canvas");
    if (!canvas) return null;
    const { width, height } = canvas;
    return { width, height, lines: [], texts: [], marks: [], ...drawn.get(canvas) };
  };
  globalThis.probedColumns = (title, name) => {
    const charts = [...document.querySelectorAll("section.chart")];
    const canvas = charts.find((one) => one.ariaLabel === title).querySelector("canvas");
    const { width, height } = canvas;
    const { data } = canvas.getContext("2d").getImageData(0, 0, width, height);
    const wanted = [...probedColour(name).matchAll(/[0-9a-f]{2}/g)].map((x) => parseInt(x, 16));
    const found = new Set();
    for (let i = 0; i < width * height; i++) {
      const isOpaque = data[4 * i + 3] > 200;
      const isLike = wanted.every((value, k) => Math.abs(data[4 * i + k] - value) < 24);
      if (isOpaque && isLike) found.add(i % width);
    }
    return [...found].sort((a, b) => a - b);
  };
  globalThis.probedColour = (name) => {
    const ctx = document.createElement("canvas").getContext("2d");
    const style = getComputedStyle(document.documentElement);
    ctx.fillStyle = style.getPropertyValue(`--${name}`).trim();
    return ctx.fillStyle;
  };
})();
"""


def chart(page: Any, title: str | None = None) -> dict[str, Any]:
    """{width, height, lines: [{colour, dash, points: [x, y, is joined to the one before]}], texts:
    [{text, left, right, y}], marks} in pixels; without a title, of the first chart."""
    return page.evaluate("title => probedChart(title)", title)


def lines(page: Any, colour: str, title: str | None = None) -> list[dict[str, Any]]:
    """Those in a colour of the style sheet, the solid ones first."""
    wanted = page.evaluate("name => probedColour(name)", colour)
    found = [line for line in chart(page, title)["lines"] if line["colour"] == wanted]
    return sorted(found, key=lambda line: line["dash"])


def inked(page: Any, colour: str, title: str) -> list[int]:
    """The columns of pixels in which this colour of the style sheet is."""
    return page.evaluate("([title, name]) => probedColumns(title, name)", [title, colour])
