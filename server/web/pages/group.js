/** One group: its curves over compute, mean and spread over seeds, gains, and a ladder's fit with what it predicts. */

import { get, path, post, remove } from "../api.js";
import { createChart } from "../charts/chart.js";
import { colourOf, coloursOfCells, lossPicture, qualityPicture } from "../charts/group-pictures.js";
import { confirm } from "../components/dialog.js";
import { choice } from "../components/resume-dialog.js";
import { stateBadge } from "../components/state.js";
import { facts, table } from "../components/table.js";
import { toast } from "../components/toast.js";
import { reasonSentence } from "../condition.js";
import { fill, h, setText, userText } from "../dom.js";
import { bpb, evaluation, loss, metric, titleOf } from "../catalog.js";
import { count, duration, exponent, fixed, flops, integer, kwh, percent, significant, words } from "../format.js";
import { cellName, countsOf, variedLine } from "../group-text.js";
import { createLoader } from "../loader.js";
import { go, link, replaceQuery } from "../router.js";
import { isActive } from "../verbs.js";

const EVERY_MILLISECONDS = 10_000;
const MOST_CURVES = 24; // as many as can be told apart
const POINTS = 200;

export async function mount(root, name, query) {
  const histories = new Map(); // run -> {step, steps, values}
  const view = { baseline: query.baseline ?? "" };
  const [refused, numbers] = [h("div"), h("div.stack")];
  const counts = h("p.soft", { role: "status" });
  const title = h("bdi.head-title", { dir: "auto" });
  const varied = h("p.soft.note-line");
  const curves = createChart({ title: metric("loss_smooth").label, note: "over FLOP of training", height: 320, format: loss });
  const quality = createChart({ title: titleOf(evaluation("bpb")), note: "mean and spread over seeds, over FLOP", height: 320, format: bpb });
  const others = await get("v1/groups", { limit: 100 }).then(({ data }) => data.map((g) => g.name).filter((one) => one !== name));
  const baseline = choice([["", "first values of this group"], ...others.map((one) => [one, one])], view.baseline);
  baseline.addEventListener("change", () => {
    view.baseline = baseline.value;
    replaceQuery({ baseline: view.baseline || null });
    load();
  });
  const stop = h("button", { type: "button", onclick: cancel }, "Cancel all");
  fill(root,
    h("div.page-head", {}, h("h1", { tabindex: -1 }, userText(name)), title, h("span.spring"), stop, h("button.danger-text", { type: "button", onclick: drop }, "Delete…")),
    h("div.row.list-tools", {}, counts, h("span.spring"), h("label.row", {}, h("span.soft", {}, "Baseline"), baseline)),
    varied, refused, h("div.group-charts", {}, curves.element, quality.element), numbers);
  const { load, close } = createLoader({ host: numbers, refused, ask, show });
  const timer = setInterval(() => !document.hidden && load(), EVERY_MILLISECONDS);
  load();

  /** Curves only of runs that went on since. */
  async function ask() {
    const detail = await get(path("groups", name), { baseline: view.baseline });
    const wanted = detail.members.filter((m) => m.step > 0).slice(0, MOST_CURVES).filter((m) => histories.get(m.run)?.step !== m.step);
    await Promise.all(wanted.map(async (member) => {
      const answer = await get(path("runs", member.run, "metrics"), { keys: "loss_smooth", columns: true, bands: "", max_points: POINTS });
      histories.set(member.run, { step: member.step, steps: answer.steps, values: answer.series[0]?.mean ?? [] });
    }));
    return detail;
  }

  function show(group) {
    const colours = coloursOfCells(group.cells);
    setText(title, group.title ?? "");
    setText(counts, `${integer(group.num_members)} runs: ${countsOf(group.counts)}.`);
    setText(varied, variedLine(group));
    stop.disabled = !group.members.some((member) => isActive(member.state));
    const drawn = group.members.filter((member) => member.step > 0).length;
    curves.setNote(drawn > MOST_CURVES ? `over FLOP of training; the first ${MOST_CURVES} of ${drawn} runs` : "over FLOP of training");
    curves.show(lossPicture(group, histories, colours));
    quality.show(qualityPicture(group, colours));
    fill(numbers,
      h("h2", {}, "Variants"), table("Variants", cellColumns(group, colours), group.cells),
      h("p.soft.note-line", {}, noiseLine(group.noise), group.baseline && [" Gains and multipliers are against ", h("b", {}, userText(group.baseline)), "."]),
      group.notes.map((note) => h("p.soft.note-line", {}, note)),
      group.fits.map(fitCard),
      h("h2", {}, "Runs"), table("Runs of the group", MEMBERS, group.members));
  }

  async function cancel() {
    const done = await confirm({ title: `Cancel the unfinished runs of ${name}?`, text: "Runs that are training end without saving a checkpoint.", agree: "Cancel them", danger: true, act: () => post(path("groups", name, "cancel")) });
    if (done) load();
  }

  async function drop() {
    const runs = h("input", { type: "checkbox" });
    const done = await confirm({
      title: `Delete the group ${name}?`, agree: "Delete", danger: true,
      text: h("label.tick", {}, runs, h("span", {}, "Also delete its runs with their checkpoints and history")),
      act: () => remove(`${path("groups", name)}?runs=${runs.checked}`).then(() => true),
    });
    if (!done) return;
    toast(`${name} is deleted.`);
    go(["groups"]);
  }

  return { unmount: () => (clearInterval(timer), close(), curves.destroy(), quality.destroy()) };
}

function noiseLine({ spread, note }) {
  return spread === null ? `Noise floor: ${lower(note)}` : `Noise floor: a standard deviation of ${significant(spread, 2)} bits per byte between seeds. ${note}`;
}

const lower = (text) => text[0].toLowerCase() + text.slice(1);

function cellColumns(group, colours) {
  return [
    { label: "Variant", cell: (cell) => [h("i.key", { style: { "--key": `var(--${colourOf(colours, cell).colour})` } }), userText(cellName(cell))] },
    { label: "Finished", num: true, cell: (cell) => `${integer(cell.num_finished)} of ${integer(cell.num_members)}` },
    { label: "FLOP", num: true, cell: (cell) => exponent(cell.flops) },
    { label: "Val bpb, mean", num: true, cell: (cell) => bpb(cell.val_bpb_mean) },
    { label: "Spread over seeds", num: true, cell: (cell) => (cell.val_bpb_spread === null ? "–" : `± ${significant(cell.val_bpb_spread, 2)}`) },
    { label: "Gain", num: true, cell: (cell) => (cell.gain === null ? "–" : `${fixed(cell.gain, 4)}${cell.gain_uncertainty === null ? "" : ` ± ${significant(cell.gain_uncertainty, 2)}`}`) },
    { label: "Significant?", cell: (cell) => (cell.gain === null ? "–" : h("span.tag", { dataset: { tone: { true: "good", false: "warn" }[cell.is_real] ?? "quiet" } }, { true: "beyond the noise", false: "within the noise" }[cell.is_real] ?? "too few seeds")) },
    { label: "Compute multiplier", num: true, cell: (cell) => h("span", { title: cell.multiplier_note }, cell.compute_multiplier === null ? "–" : `× ${significant(cell.compute_multiplier, 3)}`) },
  ];
}

function fitCard(fit) {
  const between = ([low, high], write) => `${write(low)} to ${write(high)}`;
  const three = (v) => significant(v, 3);
  const { prediction: next } = fit;
  const sure = percent(fit.confidence);
  return h("section.card.pad.stack.tight", { "aria-label": `Fit of ${cellName({ depth: null, variant: fit.variant })}` },
    h("h3", {}, `Ladder: ${cellName({ depth: null, variant: fit.variant })}`),
    facts([
      ["fit", fit.form, `${integer(fit.num_points)} runs; ${fit.source}`],
      ["alpha", three(fit.alpha), `${between(fit.alpha_interval, three)} at ${sure}`],
      ["E, the floor", bpb(fit.e), `${between(fit.e_interval, bpb)} at ${sure}`],
      ["residual spread", significant(fit.residual_spread, 2)],
      next && [`predicted val bpb, depth ${integer(next.depth)}`, bpb(next.val_bpb), `${between(next.val_bpb_interval, bpb)} at ${sure}`],
      next && ["its size", `${count(next.parameters)} parameters, ${count(next.tokens)} tokens`, flops(next.flops)],
      next && ["its time", next.hours === null ? "–" : duration(3600 * next.hours), next.time_source],
      next && ["its energy", kwh(next.kwh)],
    ]),
    fit.not_told.length > 0 && h("details", {}, h("summary", {}, "What the fit does not know"), h("ul.plain", {}, fit.not_told.map((text) => h("li", {}, text)))));
}

const MEMBERS = [
  { label: "Run", cell: (m) => h("a", { href: link(["runs", m.name]) }, userText(m.name)) },
  { label: "State", cell: (m) => [stateBadge(m.state), !["requested", "finished"].includes(m.reason) && h("small", { title: reasonSentence(m) }, words(m.reason))] },
  { label: "Step", num: true, cell: (m) => `${integer(m.step)} / ${integer(m.end_step)}` },
  { get label() { return metric("loss_smooth").label; }, num: true, cell: (m) => loss(m.loss_smooth) },
  { get label() { return titleOf(evaluation("bpb")); }, num: true, cell: (m) => bpb(m.val_bpb) },
  { label: "Seed", num: true, cell: (m) => integer(m.seed) },
  { label: "Parameters", num: true, cell: (m) => count(m.parameters) },
  { label: "FLOP", num: true, cell: (m) => exponent(m.flops) },
  { label: "Training time", num: true, cell: (m) => duration(m.training_seconds) },
];
