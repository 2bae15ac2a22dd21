/** Opening hours as fields: always, or the stretches of the week that one lists. */

import { bounds } from "../catalog.js";
import { fill, h } from "../dom.js";
import { weekdays } from "../hours.js";
import { segmented } from "./segmented.js";

/** @param {any[]|null} hours as the API has them @returns {{element: HTMLElement, value: () => any[]|null}} */
export function hoursEditor(hours) {
  let isLimited = hours !== null;
  const rules = (hours ?? []).map(ruleFields);
  const list = h("ol.hours");
  const add = h("button.small", { type: "button", onclick: () => (rules.push(ruleFields({ from: "22:00", to: "07:00" })), draw()) }, "Add hours");
  const limited = h("div.stack.tight", {}, list, h("div.row", {}, add, h("span.soft", {}, "Hours that end before they start continue past midnight.")));
  const element = h("fieldset.stack.tight", {}, h("legend.label", {}, "Training hours"),
    segmented("Training hours", [["always", "Always"], ["hours", "Only in these hours"]], isLimited ? "hours" : "always", (kind) => {
      isLimited = kind === "hours";
      if (isLimited && !rules.length) rules.push(ruleFields({ from: "22:00", to: "07:00" }));
      draw();
    }), limited);
  draw();

  function draw() {
    limited.hidden = !isLimited;
    fill(list, rules.length ? rules.map((rule, i) => h("li", {}, rule.element,
      h("button.icon", { type: "button", "aria-label": `Remove hours ${i + 1}`, onclick: () => (rules.splice(i, 1), draw()) }, "✕"))) : h("li.soft", {}, "No hours: training never starts."));
  }

  return { element, value: () => (isLimited ? rules.map((rule) => rule.value()) : null) };
}

function ruleFields({ days = weekdays(), from = "00:00", to = "00:00", zone = null, price_below: price = null }) {
  const boxes = weekdays().map((day) => h("input", { type: "checkbox", value: day, checked: days.includes(day) }));
  const time = (label, value) => h("input", { type: "time", value, required: true, "aria-label": label });
  const [begin, end] = [time("From", from), time("To", to)];
  const below = h("input", { type: "number", step: "any", value: price ?? "", placeholder: "any price" });
  const place = h("input", { type: "text", value: zone ?? "", placeholder: "this machine's", ...bounds("spec", "/hours/zone") });
  const element = h("div.hours-rule", {},
    h("div.days", { role: "group", "aria-label": "Days" }, boxes.map((box, i) => h("label", {}, box, h("span", {}, weekdays()[i])))),
    h("div.row.times", {}, begin, "to", end),
    h("label.field", {}, h("span", {}, "Only below, per kWh"), below), h("label.field", {}, h("span", {}, "Time zone"), place));
  const value = () => ({
    days: weekdays().filter((_, i) => boxes[i].checked), from: begin.value, to: end.value,
    zone: place.value.trim() || null, price_below: below.value === "" ? null : Number(below.value),
  });
  return { element, value };
}
