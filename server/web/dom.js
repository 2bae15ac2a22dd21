/**
 * Elements from plain calls. Strings become text nodes, never markup: what a user typed stays text.
 */

/**
 * h("button.primary", {onclick, disabled: true}, "Pause"): an element with attributes and children.
 * Attributes: `on…` are listeners, true/false switch, null is left out, `dataset` and `style` take
 * objects (style goes through the CSSOM, which a strict content policy allows).
 * @param {string} selector tag with optional .classes
 * @param {Record<string, any>} [attributes]
 * @param {...any} children nodes, strings, numbers, arrays of those; null and false are left out
 * @returns {HTMLElement}
 */
export function h(selector, attributes = {}, ...children) {
  const [tag, ...classes] = selector.split(".");
  const element = document.createElement(tag || "div");
  if (classes.length) element.classList.add(...classes);
  return dress(element, attributes, children);
}

/** The same for SVG. */
export function svg(tag, attributes = {}, ...children) {
  return dress(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function dress(element, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) setAttribute(element, key, value);
  append(element, children);
  return element;
}

function setAttribute(element, key, value) {
  if (value === null || value === undefined || value === false) return;
  if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
  else if (key === "dataset") Object.assign(element.dataset, value);
  else if (key === "style") for (const [k, v] of Object.entries(value)) element.style.setProperty(k, v);
  else if (key === "value") element.value = value;
  else element.setAttribute(key, value === true ? "" : String(value));
}

function append(element, children) {
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false) continue;
    element.append(child instanceof Node ? child : document.createTextNode(String(child)));
  }
}

/** Replaces the children of `element`. */
export function fill(element, ...children) {
  element.replaceChildren();
  append(element, children);
  return element;
}

/** Sets the text only when it changed: assistive technology and layout stay quiet. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Scrolls a row of links sideways, and nothing else, until `link` is in its middle. */
export function center(row, link) {
  row.scrollLeft = link.offsetLeft - row.offsetLeft - (row.clientWidth - link.offsetWidth) / 2;
}

/** Text by a person: isolated, so that right-to-left names do not turn their surroundings. */
export function userText(text, selector = "bdi") {
  return h(selector, { dir: "auto" }, text ?? "");
}

let counter = 0;
/** An id that is unique in the page, for labels and descriptions. */
export function uid(prefix = "e") {
  return `${prefix}-${++counter}`;
}
