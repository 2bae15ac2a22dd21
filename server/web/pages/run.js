/** One run: how it stands, what can be done about it, and everything it has made. */

import { get, path } from "../api.js";
import { createActions } from "../components/actions.js";
import { createRunHead } from "../components/run-head.js";
import { problemBox } from "../components/problem.js";
import { fill, h } from "../dom.js";
import { progress as share } from "../format.js";
import { go, here, link } from "../router.js";
import { follow } from "../sse.js";
import { isActive } from "../verbs.js";

const TABS = [
  ["", "Charts", () => import("./run/charts.js")],
  ["checkpoints", "Checkpoints", () => import("./run/checkpoints.js")],
  ["evaluations", "Evaluations", () => import("./run/evaluations.js")],
  ["samples", "Samples", () => import("./run/samples.js")],
  ["events", "Events", () => import("./run/events.js")],
  ["log", "Log", () => import("./run/log.js")],
  ["attempts", "Phases and attempts", () => import("./run/attempts.js")],
  ["plan", "Spec and plan", () => import("./run/plan.js")],
];
const RESCUE_MILLISECONDS = 10_000;
const SETTLE_MILLISECONDS = 120;

/**
 * What the parts of the page share. detail: RunDetail; progress: Progress.
 * @typedef {{detail: any, progress: any, isActive: () => boolean, reload: () => Promise<void>}} RunContext
 */

export async function mount(root, place, { setStatus }) {
  const name = place.parts[1] ?? "";
  /** @type {RunContext} */
  const run = { detail: null, progress: null, isActive: () => isActive(run.detail.state), reload };
  let tab = null; // {name, part}
  let turn = 0;
  let settling = 0;

  await load();
  const head = createRunHead();
  const actions = createActions(run);
  const refused = h("div");
  const tabs = TABS.map(([key, text]) => h("a", { href: link(["runs", name, key].filter(Boolean)), dataset: { key } }, text));
  const panel = h("div.tab-panel");
  fill(root, head.element(actions.element), refused, head.stats, h("nav.tabs", { "aria-label": "Parts of this run" }, tabs), panel);
  redraw();

  const stop = follow(path("runs", run.detail.id, "events"), {
    after: await lastEvent(run.detail.id), onMessage, onReconnect: reload, onStatus: setStatus,
  });
  const rescue = setInterval(() => !document.hidden && reload(), RESCUE_MILLISECONDS);
  showTab(place);

  async function load() {
    const [detail, progress] = await Promise.all([get(path("runs", name)), get(path("runs", name, "progress"))]);
    Object.assign(run, { detail, progress });
  }

  async function reload() {
    try {
      await load();
      fill(refused);
      redraw();
    } catch (problem) {
      fill(refused, problemBox(problem));
    }
  }

  function redraw() {
    head.update(run);
    actions.update(run.detail.state);
    document.title = titleOf(run);
  }

  function onMessage({ event, data }) {
    if (event === "gone") return go([]);
    if (event === "progress") {
      run.progress = data;
      for (const key of ["state", "step", "end_step", "reason", "reason_message", "desired_state"]) run.detail[key] = data[key];
      redraw();
      tab?.part?.onProgress?.(data);
      return;
    }
    tab?.part?.onEvent?.(data);
    clearTimeout(settling);
    settling = setTimeout(reload, SETTLE_MILLISECONDS);
  }

  async function showTab({ parts }) {
    const key = TABS.some(([k]) => k === parts[2]) ? parts[2] : "";
    if (tab?.key === key) return;
    const mine = ++turn;
    tab?.part?.unmount?.();
    tab = { key, part: null };
    for (const anchor of tabs) {
      if (anchor.dataset.key === key) anchor.setAttribute("aria-current", "page");
      else anchor.removeAttribute("aria-current");
    }
    const module = await TABS.find(([k]) => k === key)[2]();
    if (mine !== turn) return;
    const host = h("div", { class: `tab-${key || "charts"}` });
    fill(panel, host);
    tab.part = module.mount(host, run);
  }

  function unmount() {
    turn++;
    stop();
    clearInterval(rescue);
    clearTimeout(settling);
    tab?.part?.unmount?.();
    document.title = "traind";
  }

  return { unmount, update: () => showTab(here()) };
}

async function lastEvent(id) {
  try {
    const answer = await get(path("runs", id, "events"), { newest: true, limit: 1 });
    return (answer.data ?? answer)[0]?.id ?? null;
  } catch {
    return null;
  }
}

/** The tab of the browser tells the story too: "43.2 % demo". */
function titleOf({ detail, progress }) {
  const part = detail.state === "running" ? share(progress.fraction) : detail.state;
  return `${part} · ${detail.name} · traind`;
}
