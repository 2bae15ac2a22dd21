/** The loss so far as one small line. */

import { svg } from "../dom.js";

const WIDTH = 120;
const HEIGHT = 28;
const PAD = 2;

/** @param {(number|null)[]} values @param {string} label */
export function sparkline(values, label) {
  const known = values.filter((v) => v !== null && Number.isFinite(v));
  const box = svg("svg", {
    class: "spark", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": label,
    preserveAspectRatio: "none",
  });
  if (known.length < 2) return box;
  box.append(svg("path", { d: pathOf(values, Math.min(...known), ceilingOf(known)), "vector-effect": "non-scaling-stroke" }));
  return box;
}

/** The first fall from ln(vocabulary) would flatten what follows: it may leave the picture upwards. */
function ceilingOf(known) {
  const later = known.slice(Math.ceil(known.length / 12));
  return Math.max(...(later.length > 2 ? later : known));
}

function pathOf(values, low, high) {
  const scale = (HEIGHT - 2 * PAD) / (high - low || 1);
  let pen = "M";
  let d = "";
  values.forEach((value, i) => {
    if (value === null || !Number.isFinite(value)) {
      pen = "M";
      return;
    }
    const x = PAD + ((WIDTH - 2 * PAD) * i) / (values.length - 1);
    const y = HEIGHT - PAD - (value - low) * scale;
    d += `${pen}${x.toFixed(1)} ${y.toFixed(1)}`;
    pen = "L";
  });
  return d;
}
