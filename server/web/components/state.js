/** The state of a run: a word with a dot, and how far it has come. */

import { standsStill, stateWord } from "../condition.js";
import { h, setText } from "../dom.js";
import { integer, progress } from "../format.js";
import { TONE } from "../verbs.js";

export function stateBadge(state) {
  return h("span.state", { dataset: { tone: TONE[state] ?? "quiet", state } }, state);
}

/** @param {{state: string, condition?: any}} run */
export function setState(badge, run) {
  setText(badge, stateWord(run));
  badge.dataset.tone = standsStill(run) ? "warn" : TONE[run.state] ?? "quiet";
  badge.dataset.state = run.state;
}

/** A bar with "step / end" beside it. `update({step, end_step, fraction, state, condition})` moves it. */
export function progressBar(label) {
  const done = h("span.bar-done");
  const bar = h("span.bar", { role: "progressbar", "aria-label": label, "aria-valuemin": 0, "aria-valuemax": 100 }, done);
  const share = h("span.bar-share");
  const steps = h("span.bar-steps");
  const element = h("div.progress", {}, bar, h("div.bar-text", {}, steps, share));
  function update({ step, end_step, fraction, state, condition }) {
    const part = Math.max(0, Math.min(1, fraction || 0));
    done.style.setProperty("transform", `scaleX(${part})`);
    bar.dataset.tone = standsStill({ state, condition }) ? "warn" : TONE[state] ?? "quiet";
    bar.setAttribute("aria-valuenow", String(Math.floor(part * 100)));
    bar.setAttribute("aria-valuetext", `step ${integer(step)} of ${integer(end_step)}`);
    setText(steps, `${integer(step)} / ${integer(end_step)}`);
    setText(share, progress(part));
  }
  return { element, update };
}
