/** A plan in tables: what follows from a spec. */

import { h } from "../dom.js";
import { bytes, count, duration, exponent, fixed, integer, rate, significant } from "../format.js";
import { facts } from "./table.js";

/** The few numbers that decide: shown beside the form. @param {any} plan */
export function planSummary(plan) {
  return h("dl.stats.few", {}, [
    ["Parameters", count(plan.parameters.total), `${integer(plan.shape.n_layer)} layers, width ${integer(plan.shape.n_embd)}`],
    ["Steps", integer(plan.horizon.steps), `${integer(plan.batch.tokens)} tokens each`],
    ["Tokens", count(plan.horizon.tokens), `${fixed(plan.horizon.ratio, 1)} per parameter`],
    ["Compute", `${exponent(plan.horizon.flops)}`, "FLOP"],
    ["Takes about", duration(plan.eta.total), `${rate(plan.eta.tokens_per_second)}, ${plan.eta.source}`],
    ["Memory", bytes(plan.memory.total), plan.memory.available ? `of ${bytes(plan.memory.available)}` : "estimated"],
    ["Disk", bytes(plan.disk.total), plan.disk.available ? `of ${bytes(plan.disk.available)} free` : "estimated"],
    ["A crash costs", duration(plan.crash_loses_at_most_seconds), "at most"],
  ].map(([name, value, note]) => h("div", {}, h("dt", {}, name), h("dd", {}, value), h("dd.note", { title: note }, note))));
}

/** Everything, in parts. @param {any} plan */
export function planTables(plan) {
  return h("div.plan-tables", {}, [
    part("Parameters", Object.entries(plan.parameters).map(([k, v]) => [plain(k), integer(v)]), bars(plan.parameters, ["wte", "value_embeds", "lm_head", "transformer", "scalars"])),
    part("Memory", Object.entries(plan.memory).filter(([, v]) => v !== null).map(([k, v]) => [plain(k), bytes(v)]),
      bars(plan.memory, ["weights", "gradients", "optimizer", "activations", "logits", "overhead"])),
    part("Shape", Object.entries(plan.shape).filter(([k]) => k !== "windows").map(([k, v]) => [k, integer(v)])),
    part("Batch", [
      ["tokens", integer(plan.batch.tokens)],
      ["device_batch_size", integer(plan.batch.device_batch_size), plan.batch.device_batch_size_assumed ? "assumed; a probe may change it" : ""],
      ["accumulation", integer(plan.batch.accumulation)],
    ]),
    part("Horizon", [
      ["steps", integer(plan.horizon.steps)], ["tokens", integer(plan.horizon.tokens)],
      ["tokens per parameter", fixed(plan.horizon.ratio, 2), `${fixed(plan.horizon.ratio_scaling, 2)} per scaling parameter; Chinchilla ${plan.horizon.chinchilla_ratio}`],
      ["FLOP", exponent(plan.horizon.flops)], ["FLOP per token", exponent(plan.horizon.flops_per_token)],
      ["causal", exponent(plan.horizon.flops_per_token_causal)], ["warmdown from", integer(plan.warmdown_start)],
    ]),
    part("Hyperparameters, as scaled", Object.entries(plan.hyperparameters).map(([k, v]) => [plain(k), significant(v, 4)])),
    part("Disk", [
      ["one checkpoint", bytes(plan.disk.checkpoint_total), `model ${bytes(plan.disk.checkpoint_model)}, optimizer ${bytes(plan.disk.checkpoint_optimizer)}`],
      ["kept", integer(plan.disk.checkpoints_kept)], ["checkpoints", bytes(plan.disk.checkpoints_total)],
      ["download", bytes(plan.disk.download)], ["token cache", bytes(plan.disk.token_cache)], ["total", bytes(plan.disk.total)],
    ]),
    part("Time", [
      ["training", duration(plan.eta.training)], ["evaluation", duration(plan.eta.evaluation)], ["saving", duration(plan.eta.saving)],
      ["start-up", duration(plan.eta.start_up)], ["total", duration(plan.eta.total), plan.eta.source],
    ]),
  ]);
}

function part(title, pairs, extra = null) {
  return h("section.card.pad", {}, h("h3", {}, title), extra, facts(pairs));
}

/** Parts of a whole as one bar; the numbers stand below it. */
export function bars(values, keys) {
  const total = keys.reduce((sum, key) => sum + values[key], 0) || 1;
  return h("div.parts", { "aria-hidden": "true" }, keys.map((key, i) =>
    h("span", { title: `${plain(key)} ${Math.round((100 * values[key]) / total)} %`, style: { "--key": `var(--line-${(i % 8) + 1})`, "flex-grow": String(values[key] / total) } })));
}

const plain = (key) => key.replaceAll("_", " ");
