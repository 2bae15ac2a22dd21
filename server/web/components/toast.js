/** A short word about what was just done. */

import { h } from "../dom.js";

const STAYS_MILLISECONDS = 6_000;

export function toast(text, tone = "good") {
  const host = document.getElementById("toasts");
  const element = h("div.toast", { dataset: { tone } }, text);
  host.append(element);
  setTimeout(() => element.remove(), STAYS_MILLISECONDS);
}
