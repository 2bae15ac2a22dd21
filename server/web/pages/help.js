/** Help: where things are, the keys, and where to read on. */

import { h, fill } from "../dom.js";
import { link } from "../router.js";

const DOCUMENTATION = "https://github.com/traind/traind/tree/main/docs";
const PLACES = [
  ["Runs", [], "every run, searched with “/”, sorted by a column's head, several at once by their boxes"],
  ["New run", ["new"], "a form or JSON, with its plan beside it; copied as curl or YAML"],
  ["Queue", ["queue"], "who runs where, who waits for what and until when; order, priorities and hours"],
  ["Groups", ["groups"], "a spec and its variations: noise floor, gains, compute multipliers and a ladder's fit"],
  ["Compare", ["compare"], "several runs under one cursor, the settings that differ, the compute each saves"],
  ["Playground", ["playground"], "a prompt to two checkpoints side by side with one seed"],
  ["Jobs", ["jobs"], "samples, evaluations, exports, imports and audits, with log, result and download"],
];
const KEYS = [
  ["/", "search the runs"], ["wheel", "zoom a chart at the pointer"], ["drag", "zoom to a range"], ["Shift and drag", "pan"],
  ["+ −", "zoom the focused chart at its cursor"], ["← →", "move its cursor"], ["0 or double-click", "all of it"], ["Esc", "close a menu, a dialog or a maximised chart"],
];

export function mount(root) {
  fill(root, h("div.page-head", {}, h("h1", { tabindex: -1 }, "Help")), h("div.stack", {},
    h("section.card.pad", {}, h("h2", {}, "Where things are"),
      h("ul", {}, PLACES.map(([name, parts, what]) => h("li", {}, h("a", { href: link(parts) }, name), `: ${what}.`)),
        h("li", {}, h("a", { href: "docs" }, "API"), ": every endpoint and field of this daemon, with curl lines."),
        h("li", {}, h("a", { href: "metrics" }, "Metrics"), ": what Prometheus scrapes."))),
    h("section.card.pad", {}, h("h2", {}, "Keys"), h("ul", {}, KEYS.map(([key, what]) => h("li", {}, h("kbd", {}, key), ` ${what}`)))),
    h("section.card.pad", {}, h("h2", {}, "Pause, cancel, extend"),
      h("p", {}, "Pause saves a checkpoint of the very last step and frees the device; a resume then repeats a recorded loss bit for bit. Cancel ends a run without saving. Extend appends a phase to a run, also to a completed one, and shows what the learning rate does at the joint before you agree."),
      h("p", {}, "On the daemon's machine ", h("code", {}, "traind --help"), " lists the commands, ", h("code", {}, "traind doctor"), " looks at the installation.")),
    h("section.card.pad", {}, h("h2", {}, "Read on"),
      h("p", {}, h("a", { href: DOCUMENTATION, rel: "noreferrer" }, "Documentation"), ": the recipe, data, faults and promises, running as a service, backups, extending. ", h("code", {}, "make docs"), " builds the same pages on your machine."))));
  return {};
}
