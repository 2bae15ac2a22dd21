/** What the list of runs can show of each, and how it is sorted. Pure. */

import { bpb, evaluation, loss, metric, titleOf } from "../catalog.js";
import { ago, count, duration, exactly, integer } from "../format.js";
import { standsStill } from "../condition.js";
import { isActive } from "../verbs.js";

/** Tags are one entry of a run's metadata, "a, b"; notes another. */
export const tagsOf = (run) => (run.metadata?.tags ?? "").split(",").map((tag) => tag.trim()).filter(Boolean);

/**
 * key -> {label, text(run) for a number cell, sort(run), title?(run)}. Those without `text` are drawn
 * by the row itself.
 */
export const COLUMNS = {
  state: { label: "State", sort: (r) => r.state },
  progress: { label: "Progress", sort: (r) => r.fraction },
  loss: { get label() { return metric("loss").label; }, text: (r) => loss(r.loss_smooth ?? r.loss), sort: (r) => r.loss_smooth ?? r.loss, title: (r) => `smoothed; last step ${loss(r.loss)}` },
  val_bpb: { get label() { return titleOf(evaluation("bpb")); }, text: (r) => bpb(r.val_bpb), sort: (r) => r.val_bpb },
  rate: { label: "Tok/s", text: (r) => (isActive(r.state) && !standsStill(r) ? integer(r.tokens_per_second) : "–"), sort: (r) => r.tokens_per_second },
  eta: { label: "Time left", text: (r) => duration(leftOf(r)), sort: leftOf },
  took: { label: "Training time", text: (r) => duration(tookOf(r)), sort: tookOf },
  spark: { label: "Loss so far" },
  params: { label: "Parameters", text: (r) => count(r.parameters), sort: (r) => r.parameters },
  tokens: { label: "Tokens", text: (r) => count(r.tokens_seen), sort: (r) => r.tokens_seen },
  created: { label: "Created", text: (r) => ago(r.created_at), sort: (r) => r.created_at, title: (r) => exactly(r.created_at) },
  started: { label: "Started", text: (r) => (r.started_at ? ago(r.started_at) : "–"), sort: (r) => r.started_at, title: (r) => exactly(r.started_at) },
  device: { label: "Device", text: (r) => r.device, sort: (r) => r.device },
  tags: { label: "Tags", text: (r) => tagsOf(r).join(", ") || "–", sort: (r) => tagsOf(r).join() },
};
export const SHOWN_FIRST = ["state", "progress", "loss", "val_bpb", "rate", "eta", "took", "spark"];

/** Of a run that is on its way. */
function leftOf(run) {
  return isActive(run.state) && !standsStill(run) ? run.eta_seconds : null;
}

/** Seconds of training so far; null before the first. */
function tookOf(run) {
  return run.training_seconds || null;
}

/** Runs that say all of the words, in name, title, state, device, tags or metadata ("key:value"). */
export function matches(run, text) {
  const words = text.toLowerCase().split(/\s+/).filter(Boolean);
  if (!words.length) return true;
  const pairs = Object.entries(run.metadata ?? {}).map(([key, value]) => `${key}:${value}`);
  const said = [run.name, run.title ?? "", run.state, run.device, ...tagsOf(run).map((tag) => `#${tag}`), ...pairs].join("\n").toLowerCase();
  return words.every((word) => said.includes(word));
}

/** @param {any[]} runs @param {string} by "" (newest first), "loss" or "-loss"; what has no value comes last */
export function sorted(runs, by) {
  const key = by.replace(/^-/, "");
  const sign = by.startsWith("-") ? -1 : 1;
  const value = key === "name" ? (r) => r.name : COLUMNS[key]?.sort;
  if (!value) return [...runs].sort((a, b) => b.created_at - a.created_at || (a.id < b.id ? 1 : -1));
  const missing = (v) => v === null || v === undefined || v === "";
  return [...runs].sort((a, b) => {
    const [x, y] = [value(a), value(b)];
    if (missing(x) || missing(y)) return Number(missing(x)) - Number(missing(y));
    return sign * (typeof x === "string" ? x.localeCompare(y) : x - y) || a.name.localeCompare(b.name);
  });
}
