/** Several runs in one chart: by step, tokens, FLOPs or time since each began. */

import { get, list, path } from "../api.js";
import { MODES } from "../charts/axis.js";
import { createChart } from "../charts/chart.js";
import { comparePicture, COMPARED } from "../charts/comparison.js";
import { LINES } from "../charts/palette.js";
import { segmented } from "../components/segmented.js";
import { choice } from "../components/resume-dialog.js";
import { stateBadge } from "../components/state.js";
import { table } from "../components/table.js";
import { fill, h, userText } from "../dom.js";
import { bpb, count, exponent, integer, loss, significant } from "../format.js";
import { createLoader } from "../loader.js";
import { here, link, replaceQuery } from "../router.js";
import { isActive } from "../verbs.js";

const MOST = 8;
const REFRESH_MILLISECONDS = 10_000;

export async function mount(root, place) {
  const all = await list("v1/runs", { limit: 100 });
  const view = {
    names: (place.query.runs ?? "").split(",").filter(Boolean).slice(0, MOST),
    key: place.query.key ?? "loss_smooth", mode: place.query.x ?? "step", zoom: null,
  };
  const known = new Map(); // name -> {detail, points, evaluations}
  const control = new AbortController();
  const chart = createChart({ title: "Comparison", height: 460, format: (v) => significant(v, 5), onZoom, onKey });
  const refused = h("div");
  const picks = h("div.chips", { role: "group", "aria-label": "Runs to compare" });
  const numbers = h("div");
  const key = choice(Object.entries(COMPARED).map(([k, { label }]) => [k, label]), view.key);
  key.setAttribute("aria-label", "What to compare");
  key.addEventListener("change", () => set({ key: key.value, zoom: null }));
  fill(root,
    h("div.page-head", {}, h("h1", { tabindex: -1 }, "Compare"), h("span.spring"), key,
      segmented("Horizontal axis", MODES, view.mode, (mode) => set({ mode, zoom: null })),
      h("button.tool", { type: "button", onclick: () => set({ zoom: null }) }, "All")),
    picks, refused, h("div.card.compare-chart", {}, chart.element),
    h("p.soft.note-line", {}, "Validation numbers taken under different settings are separate lines: they cannot be compared as one."),
    numbers);

  const { load, close } = createLoader({ host: chart.element, refused, ask: askAll, show: showAll });
  const refresh = setInterval(() => !document.hidden && isAnyActive() && load(), REFRESH_MILLISECONDS);
  if (!view.names.length) view.names = all.filter((r) => r.step > 0).slice(0, 3).map((r) => r.name);
  drawPicks();
  load();

  function set(changes) {
    Object.assign(view, changes);
    replaceQuery({ runs: view.names.join(","), key: view.key, x: view.mode });
    load();
  }

  function toggle(name) {
    const names = view.names.includes(name) ? view.names.filter((n) => n !== name) : [...view.names, name].slice(-MOST);
    set({ names, zoom: null });
    drawPicks();
  }

  function drawPicks() {
    const others = all.filter((run) => !view.names.includes(run.name)).map((run) => [run.name, run.name]);
    const add = choice([["", "Add a run…"], ...others]);
    add.setAttribute("aria-label", "Add a run");
    add.addEventListener("change", () => add.value && toggle(add.value));
    fill(picks, view.names.map((name, i) =>
      h("button.chip.run-chip", {
        type: "button", "aria-label": `Leave out ${name}`, onclick: () => toggle(name), style: { "--key": `var(--${LINES[i % LINES.length]})` },
      }, h("i.key"), userText(name), h("span.muted", { "aria-hidden": "true" }, "✕"))), add);
  }

  function askAll() {
    const wanted = { key: view.key, zoom: view.zoom };
    return Promise.all(view.names.map((name) => loadRun(name, wanted)));
  }

  function showAll(found) {
    for (const [name, run] of found) known.set(name, run);
    draw();
  }

  const isAnyActive = () => view.names.some((name) => isActive(known.get(name)?.detail.state));

  /** What ended stays as it is known. */
  async function loadRun(name, { key: wantedKey, zoom }) {
    const run = { ...known.get(name) };
    const isOld = !run.detail || isActive(run.detail.state);
    if (isOld) run.detail = await get(path("runs", name), {}, { signal: control.signal });
    if (COMPARED[wantedKey].evaluation) {
      if (isOld || !run.evaluations) run.evaluations = await list(path("runs", name, "evaluations"), {}, { signal: control.signal });
    } else {
      const range = zoom ? stepsOf(zoom, run) : {};
      const answer = await get(path("runs", name, "metrics"), { keys: wantedKey, max_points: Math.min(1500, chart.width() || 900), ...range }, { signal: control.signal });
      run.points = answer.series.find((s) => s.key === wantedKey)?.points ?? [];
      if (!zoom) run.began = run.points[0]?.[1];
    }
    return [name, run];
  }

  /** The zoom is in the axis' unit; each run has its own steps for it. Time is cut by the chart. */
  function stepsOf({ from, to }, { detail }) {
    const { tokens } = detail.plan.batch;
    const factor = { step: 1, tokens, flops: tokens * detail.plan.horizon.flops_per_token }[view.mode];
    return factor ? { from_step: Math.max(0, Math.floor(from / factor)), to_step: Math.ceil(to / factor) + 1 } : {};
  }

  function onZoom(from, to) {
    view.zoom = { from, to };
    load();
  }

  function onKey(pressed) {
    if (pressed === "0" || pressed === "Escape") set({ zoom: null });
    else return false;
    return true;
  }

  function draw() {
    const runs = view.names.map((name, i) => ({ name, colour: LINES[i % LINES.length], ...known.get(name) })).filter((r) => r.detail);
    chart.show(comparePicture(runs, view));
    chart.setNote(COMPARED[view.key].label);
    fill(numbers, table("The compared runs", COLUMNS, runs, { empty: "Choose runs above." }));
  }

  return {
    unmount: () => (control.abort(), close(), clearInterval(refresh), chart.destroy()),
    update: () => here().query.runs !== view.names.join(",") && (view.names = (here().query.runs ?? "").split(",").filter(Boolean), drawPicks(), load()),
  };
}

const COLUMNS = [
  { label: "Run", cell: ({ name, colour }) => [h("i.key", { style: { "--key": `var(--${colour})` } }), h("a", { href: link(["runs", name]) }, userText(name))] },
  { label: "State", cell: ({ detail }) => stateBadge(detail.state) },
  { label: "Step", num: true, cell: ({ detail }) => `${integer(detail.step)} / ${integer(detail.end_step)}` },
  { label: "Loss", num: true, cell: ({ detail }) => loss(detail.loss) },
  { label: "Val bpb", num: true, cell: ({ detail }) => bpb(detail.val_bpb) },
  { label: "Parameters", num: true, cell: ({ detail }) => count(detail.plan.parameters.total) },
  { label: "Batch", num: true, cell: ({ detail }) => integer(detail.plan.batch.tokens) },
  { label: "Tokens", num: true, cell: ({ detail }) => count(detail.tokens_seen) },
  { label: "FLOP", num: true, cell: ({ detail }) => exponent(detail.tokens_seen * detail.plan.horizon.flops_per_token) },
  { label: "Matrix LR", num: true, cell: ({ detail }) => significant(detail.plan.hyperparameters.matrix_lr, 3) },
];
