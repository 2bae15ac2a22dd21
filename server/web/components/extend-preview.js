/** What an extend would do: the new curve against the old, the joint in numbers, the cost. */

import { learningRateJump } from "../catalog.js";
import { makeAxis } from "../charts/axis.js";
import { createChart } from "../charts/chart.js";
import { join } from "../charts/join.js";
import { fill, h } from "../dom.js";
import { count, duration, fixed, flops, integer, rate, significant } from "../format.js";
import { facts } from "./table.js";

/** @param {import("../pages/run.js").RunContext} run */
export function createPreview(run) {
  const chart = createChart({ title: "Learning rate", note: "× peak", height: 210, labels: true, format: (v) => fixed(v, 4) });
  const joint = h("div.joint");
  const cost = h("div");
  const warnings = h("ul.warnings", { "aria-live": "polite" });
  const others = h("div");
  const element = h("div.stack.tight", {}, chart.element, joint, warnings, cost, others);

  /** @param {any} answer ExtendAnswer */
  function show({ plan, warnings: said, discarded_steps: discarded }) {
    if (!plan) {
      fill(warnings, h("li", {}, "Nothing would change: the run already ends there."));
      fill(joint);
      fill(cost);
      return;
    }
    chart.show(pictureOf(plan, run));
    fill(joint, jointTable(plan.joint));
    fill(warnings, said.map((text) => h("li", {}, text)));
    fill(cost, facts(costOf(plan, discarded, run)));
    fill(others, h("details", {}, h("summary", {}, "What the other curves would do"),
      h("ul.plain", {}, plan.alternatives.map((a) => h("li", {}, a.sentence)))));
  }

  return { element, show };
}

function pictureOf(plan, run) {
  const axis = makeAxis("step", { tokensPerStep: 1, flopsPerToken: 1 });
  const unique = (curve) => curve.filter((p, i) => i === 0 || p.step > curve[i - 1].step);
  const columns = [plan.present_curve, plan.curve].map((curve) => {
    const points = unique(curve);
    return { x: points.map((p) => p.step), values: [points.map((p) => p.lr_multiplier)] };
  });
  const { x, columns: laid } = join(columns);
  const lines = [
    { label: "current", colour: "line-8", values: laid[0][0], joined: true, width: 1.5, dash: true },
    { label: "extended", colour: "line-1", values: laid[1][0], joined: true, width: 2.5 },
  ];
  const end = Math.max(plan.end_step, run.detail.end_step);
  const edges = [{ x: plan.joint.step, tone: "accent", label: "joint" }];
  if (plan.warmdown_start > plan.start_step && plan.warmdown_start < plan.end_step) {
    edges.push({ x: plan.warmdown_start, tone: "ink-3", label: "decay" });
  }
  return { x, lines, axis, range: [0, end], yRange: null, bands: [], edges };
}

/** [before, after] of the three that change at the joint. */
function jointTable({ step, lr_multiplier: lr, momentum, weight_decay: decay }) {
  const jump = learningRateJump();
  const line = (name, [before, after], write = (v) => fixed(v, 4)) => {
    const factor = before > 0 ? after / before : null;
    const isJump = name === "Learning rate" && factor !== null && (factor > jump || factor < 1 / jump);
    return h("tr", { dataset: { jump: isJump ? "yes" : "no" } },
      h("th", { scope: "row" }, name), h("td.num", {}, write(before)), h("td.num", {}, write(after)),
      h("td.num", {}, factor === null ? "" : Math.abs(factor - 1) < 5e-4 ? "no change" : `× ${significant(factor, 3)}`));
  };
  return h("table.table.compact", {},
    h("caption", {}, `At the joint, step ${integer(step)}`),
    h("thead", {}, h("tr", {}, ["", "Before", "After", "Change"].map((t, i) => h(i ? "th.num" : "td", i ? { scope: "col" } : {}, t)))),
    h("tbody", {}, line("Learning rate", lr), line("Momentum", momentum), line("Weight decay", decay, (v) => significant(v, 3))));
}

function costOf(plan, discarded, run) {
  return [
    ["New phase", `${integer(plan.start_step)} → ${integer(plan.end_step)}`],
    ["Tokens", count(plan.tokens)],
    ["Compute", flops(plan.flops)],
    plan.eta && ["Takes about", duration(plan.eta.total), `at ${rate(plan.eta.tokens_per_second)}, ${plan.eta.source}`],
    ["Superseded", discarded ? `${integer(discarded)} steps` : "nothing"],
  ];
}
