/** Resume with other settings, mostly after the device ran out of memory. */

import { path, post } from "../api.js";
import { bounds, choices } from "../catalog.js";
import { fill, h } from "../dom.js";
import { openDialog } from "./dialog.js";
import { problemBox } from "./problem.js";

export function resumeDialog(detail) {
  return openDialog(`Resume ${detail.name} with overrides`, (close) => {
    const rows = h("input", { type: "number", ...bounds("resume", "/overrides/device_batch_size"), placeholder: String(detail.plan.batch.device_batch_size) });
    const compile = choice([["", "unchanged"], ["true", "on"], ["false", "off"]]);
    const attention = choice([["", "unchanged"], ...choices("resume", "/overrides/attention").map((name) => [name, name])]);
    const nonFinite = choice([["", "unchanged"], ...choices("spec", "/recovery/on_non_finite").map((word) => [word, word])]);
    const place = placeFields(detail.spec.place);
    const refused = h("div");
    return h("form.dialog-body", { onsubmit: submit },
      h("p", {}, "The batch in tokens stays the same. The resume is marked approximate, and the change is recorded."),
      h("label.field", {}, h("span", {}, "Rows per forward pass (device_batch_size)"), rows),
      h("label.field", {}, h("span", {}, "Compile"), compile),
      h("label.field", {}, h("span", {}, "Attention"), attention),
      h("label.field", {}, h("span", {}, "After a loss that is not finite"), nonFinite),
      place.elements,
      refused,
      h("div.dialog-foot", {}, h("button", { type: "button", onclick: () => close() }, "Not now"), h("button.primary", { type: "submit" }, "Resume")));

    async function submit(event) {
      event.preventDefault();
      const overrides = {};
      if (rows.value) overrides.device_batch_size = Number(rows.value);
      if (compile.value) overrides.compile = compile.value === "true";
      if (attention.value) overrides.attention = attention.value;
      try {
        close(await post(path("runs", detail.id, "resume"), {
          ...(Object.keys(overrides).length && { overrides }), ...(nonFinite.value && { recovery: { on_non_finite: nonFinite.value } }),
          ...place.asked(),
        }));
      } catch (problem) {
        fill(refused, problemBox(problem));
      }
    }
  });
}

/** Where it trains from now on. @param {any} held the place of the spec, null for this machine */
function placeFields(held) {
  const where = choice([["", "as it is"], ["local", "the daemon's machine"], ...choices("spec", "/place/engine").map((name) => [name, `a job of ${SAID[name] ?? name}`])]);
  const nodes = h("input", { type: "number", ...bounds("resume", "/place/nodes"), placeholder: String(held?.nodes ?? 1) });
  const texts = Object.entries({ partition: "Partition", account: "Account", time_limit: "Time limit of a job" })
    .map(([key, label]) => ({ key, label, input: h("input", { type: "text", placeholder: held?.[key] ?? "the cluster's default" }) }));
  const job = h("div", { hidden: true },
    h("label.field", {}, h("span", {}, "Nodes"), nodes),
    texts.map(({ label, input }) => h("label.field", {}, h("span", {}, label), input)));
  where.addEventListener("change", () => (job.hidden = ["", "local"].includes(where.value)));
  function asked() {
    if (where.value === "") return {};
    if (where.value === "local") return { place: null };
    const given = texts.filter(({ input }) => input.value.trim()).map(({ key, input }) => [key, input.value.trim()]);
    return { place: { ...held, engine: where.value, ...Object.fromEntries(given), ...(nodes.value && { nodes: Number(nodes.value) }) } };
  }
  return { elements: [h("label.field", {}, h("span", {}, "Trains from now on"), where), job], asked };
}

const SAID = { slurm: "Slurm" }; // engines by their own spelling

export function choice(options, chosen = "") {
  return h("select", {}, options.map(([value, text]) => h("option", { value, selected: value === chosen }, text)));
}
