/** One run: how it stands, what can be done about it, and everything it has made. */

import { get, path } from "../api.js";
import { createActions } from "../components/actions.js";
import { failureCard } from "../components/failure-card.js";
import { createRunHead } from "../components/run-head.js";
import { center, fill, h } from "../dom.js";
import { progress as share } from "../format.js";
import { createLoader } from "../loader.js";
import { go, here, link } from "../router.js";
import { follow } from "../sse.js";
import { isActive } from "../verbs.js";
import { yieldsOf } from "../yields.js";
import * as attempts from "./run/attempts.js";
import * as charts from "./run/charts.js";
import * as checkpoints from "./run/checkpoints.js";
import * as evaluations from "./run/evaluations.js";
import * as events from "./run/events.js";
import * as log from "./run/log.js";
import * as plan from "./run/plan.js";
import * as samples from "./run/samples.js";

const TABS = [
  ["", "Charts", charts],
  ["checkpoints", "Checkpoints", checkpoints],
  ["evaluations", "Evaluations", evaluations],
  ["samples", "Samples", samples],
  ["events", "Events", events],
  ["log", "Log", log],
  ["attempts", "Phases and attempts", attempts],
  ["plan", "Spec and plan", plan],
];
const RESCUE_MILLISECONDS = 60_000; // the stream tells all that changes; this is for what it missed
const TICK_MILLISECONDS = 1_000; // "12 s ago" goes on counting, whoever answers
const SETTLE_MILLISECONDS = 120;
const RECENT_EVENTS = 100;

/**
 * What the parts of the page share. detail: RunDetail; progress: Progress.
 * @typedef {{detail: any, progress: any, yields: any[], isActive: () => boolean, reload: () => Promise<void>}} RunContext
 */

export async function mount(root, place, { setStatus }) {
  const name = place.parts[1] ?? "";
  /** @type {RunContext} */
  const run = { detail: null, progress: null, yields: [], isActive: () => isActive(run.detail.state), reload: () => again.load() };
  let tab = null; // {key, part}
  let settling = 0;

  Object.assign(run, await askAll());
  const shownName = run.detail.name;
  const moves = []; // state events
  const recent = await recentEvents(run);
  const head = createRunHead();
  const actions = createActions(run);
  const refused = h("div");
  const failure = failureCard(run);
  const tabs = TABS.map(([key, text]) => h("a", { href: link(["runs", name, key].filter(Boolean)), dataset: { key } }, text));
  const row = h("nav.tabs", { "aria-label": "Parts of this run" }, tabs);
  const panel = h("div.tab-panel");
  fill(root, head.element(actions.element), refused, failure.element, head.stats, row, panel);
  const again = createLoader({ host: head.stats, refused, ask: askAll, show: (answers) => (Object.assign(run, answers), redraw()) });
  head.stats.removeAttribute("aria-busy"); // it has its first answer
  redraw();

  const stop = follow(path("runs", run.detail.id, "events"), {
    after: recent.at(-1)?.id ?? null, onMessage, onReconnect: run.reload, onStatus: setStatus,
  });
  const ticking = setInterval(() => !document.hidden && head.update(run), TICK_MILLISECONDS);
  const rescue = setInterval(() => !document.hidden && run.reload(), RESCUE_MILLISECONDS);
  showTab(place);
  takeMoves(recent);

  async function askAll() {
    const ref = run.detail?.id ?? name; // the name may change while the page is open
    const [detail, progress] = await Promise.all([get(path("runs", ref)), get(path("runs", ref, "progress"))]);
    return { detail, progress };
  }

  function redraw() {
    if (run.detail.name !== shownName) return go(["runs", run.detail.name, ...here().parts.slice(2)], here().query);
    head.update(run);
    actions.update(run.detail.state);
    failure.update();
    document.title = titleOf(run);
  }

  function onMessage({ event, data }) {
    if (event === "gone") return go([]);
    if (event === "progress") {
      run.progress = data;
      for (const key of ["state", "step", "end_step", "reason", "reason_message", "desired_state", "condition"]) run.detail[key] = data[key];
      redraw();
      tab?.part.onProgress?.(data);
      return;
    }
    if (data?.kind === "state") takeMoves([data]);
    tab?.part.onEvent?.(data);
    clearTimeout(settling);
    settling = setTimeout(run.reload, SETTLE_MILLISECONDS);
  }

  /** When it made way: from the events that are known and the ones that come. */
  function takeMoves(events) {
    moves.push(...events.filter(({ kind, id }) => kind === "state" && !moves.some((known) => known.id === id)));
    run.yields = yieldsOf(moves);
    redraw();
    tab?.part.onYields?.();
  }

  function showTab({ parts }) {
    const key = TABS.some(([k]) => k === parts[2]) ? parts[2] : "";
    if (tab?.key === key) return;
    tab?.part.unmount?.();
    for (const anchor of tabs) {
      if (anchor.dataset.key === key) (anchor.setAttribute("aria-current", "page"), center(row, anchor));
      else anchor.removeAttribute("aria-current");
    }
    const [, , module] = TABS.find(([k]) => k === key);
    const host = h("div", { class: `tab-${key || "charts"}` });
    fill(panel, host);
    tab = { key, part: module.mount(host, run) };
  }

  function unmount() {
    stop();
    again.close();
    clearInterval(rescue);
    clearInterval(ticking);
    clearTimeout(settling);
    tab?.part.unmount?.();
    document.title = "traind";
  }

  return { unmount, update: () => showTab(here()) };
}

/** The last of them is where the stream begins; a run of several attempts has perhaps made way. */
async function recentEvents({ detail, progress }) {
  const limit = progress.attempt > 1 ? RECENT_EVENTS : 1;
  return (await get(path("runs", detail.id, "events"), { newest: true, limit })).data;
}

/** The tab of the browser tells the story too: "43.2 % demo". */
function titleOf({ detail, progress }) {
  const part = detail.state === "running" ? share(progress.fraction) : detail.state;
  return `${part} · ${detail.name} · traind`;
}
