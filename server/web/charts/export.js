/** A chart as a picture to take away: what is on the screen, with its title and the names of its lines. */

import { h } from "../dom.js";
import { dataOf } from "./scales.js";
import { colour, font } from "./palette.js";

const HEAD = 34; // pixels above the plot, for title and names

export function savePng(plot, picture, title, name) {
  const ratio = devicePixelRatio;
  const canvas = h("canvas", { width: plot.ctx.canvas.width, height: plot.ctx.canvas.height + HEAD * ratio });
  const pen = canvas.getContext("2d");
  pen.fillStyle = colour("surface");
  pen.fillRect(0, 0, canvas.width, canvas.height);
  pen.drawImage(plot.ctx.canvas, 0, HEAD * ratio);
  pen.scale(ratio, ratio);
  pen.textBaseline = "middle";
  let at = 12;
  for (const { text, tone, bold } of headOf(picture, title)) {
    pen.font = bold ? `600 ${font()}` : font();
    pen.fillStyle = colour(tone);
    pen.fillText(text, at, HEAD / 2);
    at += pen.measureText(text).width + 14;
  }
  canvas.toBlob((blob) => offer(blob, `${name}.png`), "image/png");
}

export function saveSvg(plot, picture, title, name) {
  offer(new Blob([svgOf(plot, picture, title)], { type: "image/svg+xml" }), `${name}.svg`);
}

/** Lines, bands, ticks and names of the plot as it is now. @returns {string} */
export function svgOf(plot, picture, title) {
  const { width, height, bbox } = plot;
  const box = Object.fromEntries(Object.entries(bbox).map(([k, v]) => [k, v / devicePixelRatio]));
  const [, ...columns] = dataOf(picture);
  const y = (value, scale) => plot.valToPos(value, scale) + box.top;
  const x = (value) => plot.valToPos(value, "x") + box.left;
  const parts = [];
  let column = 0;
  for (const line of picture.lines) {
    const scale = line.scale ?? "y";
    const values = columns[column++];
    if (line.band) {
      const [high, low] = [columns[column++], columns[column++]];
      parts.push(`<path d="${area(picture.x, high, low, x, (v) => y(v, scale))}" fill="${colour(line.colour)}" opacity="0.17"/>`);
    }
    parts.push(`<path d="${course(picture.x, values, line, x, (v) => y(v, scale))}" fill="none" stroke="${colour(line.colour)}" stroke-width="${line.width ?? 1.5}" opacity="${line.faint ? 0.35 : 1}"${line.dash ? ' stroke-dasharray="5 5"' : ""}/>`);
  }
  const text = (at, top, anchor, content, tone = "ink-3", more = "") =>
    `<text x="${round(at)}" y="${round(top)}" text-anchor="${anchor}" fill="${colour(tone)}"${more}>${escaped(content)}</text>`;
  const ticks = plot.axes.flatMap((axis, i) => {
    if (!axis._values) return [];
    return axis._splits.map((at, k) => (axis._values[k] ? i === 0
      ? text(x(at), box.top + box.height + 15, "middle", axis._values[k])
      : text(i === 1 ? box.left - 6 : box.left + box.width + 6, y(at, axis.scale) + 4, i === 1 ? "end" : "start", axis._values[k]) : ""));
  });
  let at = 12;
  const head = headOf(picture, title).map(({ text: word, tone, bold }) => {
    const said = text(at, -HEAD / 2 + 4, "start", word, tone, bold ? ' font-weight="600"' : "");
    at += word.length * 6.4 + 16;
    return said;
  });
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 ${-HEAD} ${width} ${height + HEAD}" width="${width}" height="${height + HEAD}" font-family="sans-serif" font-size="11">`
    + `<rect y="${-HEAD}" width="${width}" height="${height + HEAD}" fill="${colour("surface")}"/>`
    + `<clipPath id="plot"><rect x="${box.left}" y="${box.top}" width="${box.width}" height="${box.height}"/></clipPath>`
    + `${head.join("")}${ticks.join("")}<g clip-path="url(#plot)">${parts.join("")}</g></svg>`;
}

function headOf(picture, title) {
  const named = picture.lines.filter((line) => !line.faint && !line.quiet);
  return [{ text: title, tone: "ink", bold: true }, ...named.map((line) => ({ text: line.label, tone: line.colour }))];
}

function course(xs, values, { joined: isJoined, gaps = [] }, x, y) {
  let pen = "M";
  let d = "";
  const begins = new Set(gaps.map(([, end]) => end));
  values.forEach((value, i) => {
    if (value === null || value === undefined || !Number.isFinite(value)) {
      if (!isJoined) pen = "M";
      return;
    }
    if (begins.has(xs[i])) pen = "M";
    d += `${pen}${round(x(xs[i]))} ${round(y(value))}`;
    pen = "L";
  });
  return d;
}

function area(xs, high, low, x, y) {
  const known = xs.map((_, i) => i).filter((i) => high[i] !== null && low[i] !== null);
  const there = known.map((i) => `${round(x(xs[i]))} ${round(y(high[i]))}`);
  const back = known.toReversed().map((i) => `${round(x(xs[i]))} ${round(y(low[i]))}`);
  return there.length ? `M${[...there, ...back].join("L")}Z` : "";
}

const round = (value) => Math.round(value * 10) / 10;
const escaped = (text) => String(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;");

export function offer(blob, name) {
  const link = h("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}
