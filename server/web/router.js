/**
 * Where the page is, in the hash: it works behind any port, prefix or tunnel.
 * "#/runs/demo/checkpoints?x=tokens" -> {parts: ["runs", "demo", "checkpoints"], query: {x: "tokens"}}
 *
 * @typedef {{parts: string[], query: Record<string, string>}} Place
 */

/** @returns {Place} */
export function parse(hash) {
  const [path, query = ""] = hash.replace(/^#?\/?/, "").split("?");
  const parts = path.split("/").filter(Boolean).map(decodePart);
  return { parts, query: Object.fromEntries(new URLSearchParams(query)) };
}

/** The hash of a place: link(["runs", name], {x: "time"}) */
export function link(parts, query = {}) {
  const given = Object.entries(query).filter(([, v]) => v !== undefined && v !== null && v !== "");
  const tail = given.length ? `?${new URLSearchParams(given)}` : "";
  return `#/${parts.map(encodeURIComponent).join("/")}${tail}`;
}

export const here = () => parse(location.hash);
export const go = (parts, query) => (location.hash = link(parts, query));

/** Says something about the present view in the address without making a step back of it. */
export function replaceQuery(changes) {
  const { parts, query } = here();
  history.replaceState(null, "", link(parts, { ...query, ...changes }));
}

/** Calls `show(place)` now and whenever the hash changes. */
export function follow(show) {
  addEventListener("hashchange", () => show(here()));
  show(here());
}

function decodePart(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}
