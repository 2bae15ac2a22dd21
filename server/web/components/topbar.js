/** Brand, places, whether the stream is live, and the theme. */

import { center, fill, h, setText, svg } from "../dom.js";
import * as prefs from "../prefs.js";
import { link } from "../router.js";

const SAID = { live: "live", waiting: "reconnecting", "": "" };
const THEMES = ["system", "light", "dark"];

export function createTopbar(host) {
  const places = [["", "Runs"], ["queue", "Queue"], ["groups", "Groups"], ["compare", "Compare"], ["playground", "Playground"], ["jobs", "Jobs"], ["new", "New run"]];
  const anchors = places.map(([name, text]) => h("a", { href: link(name ? [name] : []), dataset: { place: name } }, text));
  const pages = h("nav", { "aria-label": "Pages" }, anchors);
  const said = h("span");
  const live = h("div.live", { role: "status" }, said);
  fill(host,
    h("a.brand", { href: "#/", "aria-label": "traind: runs" }, logo(), h("span", {}, "traind")),
    pages,
    h("span.spring"), live, h("a.bar-link", { href: link(["help"]) }, "Help"), h("a.bar-link", { href: "docs" }, "API"), signOut(), themeButton());

  function setPlace({ parts: [name = ""] }) {
    for (const anchor of anchors) {
      const isHere = anchor.dataset.place === (name === "runs" ? "" : name);
      if (isHere) (anchor.setAttribute("aria-current", "page"), center(pages, anchor));
      else anchor.removeAttribute("aria-current");
    }
  }

  /** @param {"live"|"waiting"|""} status */
  function setStatus(status) {
    live.dataset.status = status;
    setText(said, SAID[status]);
  }

  setStatus("");
  applyTheme(prefs.read("theme", "system"));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => applyTheme(prefs.read("theme", "system")));
  return { setPlace, setStatus };
}

/** For who typed a token here. */
function signOut() {
  const button = h("button.bar-link", { type: "button", hidden: prefs.read("signed-in", "no") !== "yes", onclick: leave }, "Sign out");
  addEventListener("traind:signed-in", () => (button.hidden = false));
  return button;

  async function leave() {
    await fetch("v1/session", { method: "DELETE" }).catch(() => null);
    prefs.write("signed-in", "no");
    location.reload();
  }
}

function themeButton() {
  const button = h("button.icon.theme", { type: "button", onclick: next });
  name(prefs.read("theme", "system"));
  return button;

  function next() {
    const chosen = THEMES[(THEMES.indexOf(prefs.read("theme", "system")) + 1) % THEMES.length];
    prefs.write("theme", chosen);
    applyTheme(chosen);
    name(chosen);
  }

  function name(theme) {
    setText(button, { system: "◐", light: "○", dark: "●" }[theme] ?? "◐");
    button.setAttribute("aria-label", `Theme: ${theme}. Change`);
    button.setAttribute("title", `Theme: ${theme}`);
  }
}

function applyTheme(theme) {
  const isDark = theme === "dark" || (theme !== "light" && matchMedia("(prefers-color-scheme: dark)").matches);
  document.documentElement.dataset.theme = isDark ? "dark" : "light";
  dispatchEvent(new Event("traind:theme"));
}

function logo() {
  return svg("svg", { viewBox: "0 0 32 32", "aria-hidden": "true" },
    svg("rect", { width: 32, height: 32, rx: 7, class: "logo-box" }),
    svg("path", { class: "logo-line", d: "M6 8c3 0 3.400 9.500 7 12s7.500 3 13 3.200" }));
}
