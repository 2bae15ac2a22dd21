/** The spec as it was asked for, and the plan that follows from it. */

import { planTables } from "../../components/plan-view.js";
import { fill, h } from "../../dom.js";

export function mount(root, run) {
  const { spec, plan, frozen, overrides, fingerprint, directory } = run.detail;
  const block = (title, value) => value && Object.keys(value).length > 0 &&
    h("details.card.pad", { open: title === "Spec" }, h("summary", {}, title), h("pre", {}, JSON.stringify(value, null, 2)));
  fill(root, h("div.stack", {},
    plan.warnings.length > 0 && h("ul.warnings", {}, plan.warnings.map((text) => h("li", {}, text))),
    planTables(plan),
    block("Spec", spec), block("Frozen at the first start", frozen), block("Overrides", overrides), block("Fingerprint", fingerprint),
    h("p.soft", {}, "Directory ", h("code", {}, directory))));
  return {};
}
