/** Colours for the canvas, read from the style sheet so that there is one place for them. */

export function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

export const LINES = Array.from({ length: 12 }, (_, i) => `line-${i + 1}`);

export const font = () => {
  const size = Math.round(parseFloat(getComputedStyle(document.documentElement).fontSize) * 0.76);
  return `${Math.max(10, size)}px ${getComputedStyle(document.body).fontFamily}`;
};

/** Calls `redraw` when the colours change: the toggle, or the system going dark in the evening. */
export function onThemeChange(redraw) {
  const control = new AbortController();
  addEventListener("traind:theme", redraw, { signal: control.signal });
  return () => control.abort();
}
