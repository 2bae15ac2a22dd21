/** How the list of runs is sorted where it has no head to press: on a phone its columns are stacked. */

import { fill, h, setText } from "../dom.js";
import { COLUMNS } from "./run-columns.js";

/**
 * @param {{sort: string}} view "" (newest first), "loss" or "-loss"
 * @param {(sort: string) => void} onChange
 */
export function sortControl(view, onChange) {
  const by = h("select", { onchange: () => onChange(by.value) });
  const turn = h("button.tool", { type: "button", onclick: () => onChange(view.sort.startsWith("-") ? keyOf() : `-${keyOf()}`) });
  const keys = Object.keys(COLUMNS).filter((key) => COLUMNS[key].sort);
  fill(by, h("option", { value: "" }, "Newest first"), h("option", { value: "name" }, "Name"), keys.map((key) => h("option", { value: key }, COLUMNS[key].label)));
  const keyOf = () => view.sort.replace(/^-/, "");
  update();

  function update() {
    const isDown = view.sort.startsWith("-");
    by.value = keyOf();
    turn.hidden = !view.sort;
    setText(turn, isDown ? "↓" : "↑");
    turn.setAttribute("aria-label", isDown ? "Descending; sort ascending" : "Ascending; sort descending");
  }

  return { element: h("div.sort-by", {}, h("label.sort-by", {}, "Sort by", by), turn), update };
}
