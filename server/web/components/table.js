/** Plain tables that scroll sideways inside their own box when the screen is narrow. */

import { h } from "../dom.js";

/**
 * @param {string} caption for assistive technology
 * @param {{label: string, num?: boolean, cell: (item: any) => any}[]} columns
 * @param {any[]} items
 * @param {{empty?: string, row?: (item: any) => Record<string, any>}} [options]
 */
export function table(caption, columns, items, { empty = "Nothing yet.", row = () => ({}) } = {}) {
  if (!items.length) return h("p.empty", {}, empty);
  const head = columns.map((c) => h("th", { scope: "col", class: c.num ? "num" : null }, c.label));
  const body = items.map((item) =>
    h("tr", row(item), columns.map((c) => h("td", { class: c.num ? "num" : null }, c.cell(item)))));
  return scrolling(caption,
    h("table.table", {}, h("caption.visually-hidden", {}, caption), h("thead", {}, h("tr", {}, head)), h("tbody", {}, body)));
}

/** Names and values: [[name, value, explanation?], …] */
export function facts(pairs) {
  return h("dl.facts", {}, pairs.filter(Boolean).map(([name, value, note]) =>
    h("div", {}, h("dt", {}, name), h("dd", {}, value, note && h("span.note", {}, note)))));
}

/** A box that scrolls has to be reachable by keyboard. */
function scrolling(label, content) {
  return h("div.scroll", { tabindex: 0, role: "region", "aria-label": label }, content);
}
