/** Help: where things are, the keys, and where to read on. */

import { h, fill } from "../dom.js";
import { link } from "../router.js";

const DOCUMENTATION = "https://github.com/traind/traind/tree/main/docs";
const PLACES = [
  ["Runs", [], "all runs; search with “/”, sort by a column heading, select several to act on together"],
  ["New run", ["new"], "a form or JSON with the plan beside it; copy it as curl or YAML"],
  ["Queue", ["queue"], "which run holds which device, what waits, why and until when; order, priorities and hours"],
  ["Groups", ["groups"], "a spec and its variations: noise floor, gains, compute multipliers and the fit of a ladder"],
  ["Compare", ["compare"], "several runs under one cursor, the settings that differ, and the compute multiplier of each"],
  ["Playground", ["playground"], "one prompt and seed for two checkpoints side by side"],
  ["Jobs", ["jobs"], "samples, evaluations, exports, imports and audits with their logs, results and files"],
];
const KEYS = [
  ["/", "search the runs"], ["wheel", "zoom a chart at the pointer"], ["drag", "zoom to a range"], ["Shift and drag", "pan"],
  ["+ −", "zoom the focused chart at its cursor"], ["← →", "move its cursor"], ["0 or double-click", "reset the zoom"], ["Esc", "close a menu, a dialog or a maximised chart"],
];

export function mount(root) {
  fill(root, h("div.page-head", {}, h("h1", { tabindex: -1 }, "Help")), h("div.stack", {},
    h("section.card.pad", {}, h("h2", {}, "Where things are"),
      h("ul", {}, PLACES.map(([name, parts, what]) => h("li", {}, h("a", { href: link(parts) }, name), `: ${what}.`)),
        h("li", {}, h("a", { href: "docs" }, "API"), ": every endpoint and field of this daemon, with curl lines."),
        h("li", {}, h("a", { href: "metrics" }, "Metrics"), ": what Prometheus scrapes."))),
    h("section.card.pad", {}, h("h2", {}, "Keys"), h("ul", {}, KEYS.map(([key, what]) => h("li", {}, h("kbd", {}, key), ` ${what}`)))),
    h("section.card.pad", {}, h("h2", {}, "Pause, cancel, extend"),
      h("p", {}, "Pause saves a checkpoint of the last step and frees the device; a resume then repeats a recorded loss bit for bit. Cancel ends a run without saving. Extend appends a phase to a run, also to a completed one, and shows what the learning rate does at the joint before you agree."),
      h("p", {}, "On the daemon's machine ", h("code", {}, "traind --help"), " lists the commands, ", h("code", {}, "traind doctor"), " checks the installation.")),
    h("section.card.pad", {}, h("h2", {}, "Read on"),
      h("p", {}, h("a", { href: DOCUMENTATION, rel: "noreferrer" }, "Documentation"), ": the recipe, data, faults and promises, running as a service, backups, extending. ", h("code", {}, "make docs"), " builds the same pages on your machine."))));
  return {};
}
