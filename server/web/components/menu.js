/** A button with a menu: arrows move, Escape closes, a click outside closes. */

import { fill, h } from "../dom.js";

/**
 * @param {string} label of the button, for assistive technology
 * @param {() => {text: string, onclick: () => void, danger?: boolean, disabled?: boolean, checked?: boolean}[]} items
 *   asked each time it opens
 * @param {{text?: string, class?: string}} [look]
 */
export function menuButton(label, items, { text = "⋯", class: look = "icon" } = {}) {
  const menu = h("div.menu", { role: "menu", hidden: true, onkeydown: onKey });
  const button = h("button", { type: "button", class: look, "aria-haspopup": "menu", "aria-expanded": "false", "aria-label": text === "⋯" ? label : null, title: label, onclick: toggle }, text);
  const element = h("div.menu-host", {}, button, menu);
  const onOutside = (event) => element.contains(event.target) || close();

  function toggle() {
    if (!menu.hidden) return close();
    fill(menu, items().map(({ text: said, onclick, danger, disabled, checked }) =>
      h("button", {
        type: "button", role: checked === undefined ? "menuitem" : "menuitemcheckbox", "aria-checked": checked === undefined ? null : String(checked),
        disabled, class: danger ? "danger-text" : null, onclick: () => (close(), onclick()),
      }, checked === undefined ? said : `${checked ? "✓" : "\u2003"} ${said}`)));
    menu.hidden = false;
    button.setAttribute("aria-expanded", "true");
    document.addEventListener("pointerdown", onOutside);
    menu.querySelector("button:enabled")?.focus();
  }

  function close() {
    menu.hidden = true;
    document.removeEventListener("pointerdown", onOutside);
    button.setAttribute("aria-expanded", "false");
  }

  function onKey(event) {
    const enabled = [...menu.querySelectorAll("button:enabled")];
    const at = enabled.indexOf(document.activeElement);
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step) enabled[(at + step + enabled.length) % enabled.length]?.focus();
    else if (event.key === "Escape") {
      close();
      button.focus();
    } else return;
    event.preventDefault();
    event.stopPropagation();
  }

  return { element, close };
}
