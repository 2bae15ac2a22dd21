/** Modal dialogs on <dialog>: focus stays inside, Escape closes, focus goes back afterwards. */

import { h, uid } from "../dom.js";
import { problemBox } from "./problem.js";

/**
 * Opens a dialog. `content(close)` makes its body; the promise resolves with what `close` was given.
 * @template T
 * @returns {Promise<T|undefined>}
 */
export function openDialog(title, content, { wide = false } = {}) {
  return new Promise((resolve) => {
    const heading = uid("title");
    let answer;
    const close = (value) => {
      answer = value;
      element.close();
    };
    const element = h(
      "dialog", { class: wide ? "dialog wide" : "dialog", "aria-labelledby": heading },
      h("div.dialog-head", {},
        h("h2", { id: heading }, title),
        h("button.icon", { type: "button", "aria-label": "Close", onclick: () => close() }, "✕")),
    );
    element.append(content(close));
    const onLeave = () => element.close(); // the page below is another one
    addEventListener("hashchange", onLeave);
    element.addEventListener("close", () => {
      removeEventListener("hashchange", onLeave);
      element.remove();
      resolve(answer);
    });
    document.body.append(element);
    element.showModal();
    element.querySelector(".dialog-body :is(input, select, textarea):enabled")?.focus();
  });
}

/**
 * Asks before something is done, and does it inside the dialog, where a refusal is shown.
 * act(): resolves when done; typed: a word that has to be typed first.
 * @returns {Promise<any>} what act resolved with, undefined when not agreed
 */
export function confirm({ title, text, agree, danger = false, typed = null, act }) {
  return openDialog(title, (close) => {
    const refused = h("div");
    const word = typed && h("input", { type: "text", autocomplete: "off", "aria-label": `Type ${typed} to confirm` });
    const yes = h("button", { type: "submit", class: danger ? "danger" : "primary" }, agree);
    const form = h("form.dialog-body", { onsubmit: submit },
      h("p", {}, text),
      typed && h("label.field", {}, h("span", {}, "Type ", h("code", {}, typed), " to confirm"), word),
      refused,
      h("div.dialog-foot", {},
        h("button", { type: "button", onclick: () => close() }, "Keep as is"), yes));
    if (word) {
      yes.disabled = true;
      word.addEventListener("input", () => (yes.disabled = word.value !== typed));
    }
    async function submit(event) {
      event.preventDefault();
      yes.disabled = true;
      try {
        close((await act()) ?? true);
      } catch (problem) {
        refused.replaceChildren(problemBox(problem));
        yes.disabled = false;
      }
    }
    return form;
  });
}
