/** A choice of one among few: radio buttons that look like one control. */

import { h, uid } from "../dom.js";

/**
 * @param {string} label
 * @param {[string, string][]} choices [value, text]
 * @param {(value: string) => void} onChange
 */
export function segmented(label, choices, chosen, onChange) {
  const name = uid("choice");
  return h("fieldset.segmented", {},
    h("legend.visually-hidden", {}, label),
    choices.map(([value, text]) =>
      h("label", {},
        h("input", { type: "radio", name, value, checked: value === chosen, onchange: () => onChange(value) }),
        h("span", {}, text))));
}
