/** The page's composition root: the bar at the top, and one page at a time below it. */

import { onUnauthorized } from "./api.js";
import { askForToken } from "./components/login.js";
import { problemBox } from "./components/problem.js";
import { createTopbar } from "./components/topbar.js";
import { fill, h } from "./dom.js";
import * as router from "./router.js";

const PAGES = {
  "": () => import("./pages/runs.js"),
  runs: () => import("./pages/run.js"),
  compare: () => import("./pages/compare.js"),
  new: () => import("./pages/create.js"),
};

onUnauthorized(askForToken);
const topbar = createTopbar(document.getElementById("topbar"));
const main = document.getElementById("main");
let current = null; // {key, page}
let turn = 0;

document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault(); // the hash is the router's
  main.focus();
});

/** A page: mount(root, place, {setStatus}) -> {unmount(), update?(place)}. */
async function show(place) {
  const mine = ++turn;
  const [name = "", id = ""] = place.parts;
  const key = name === "runs" && id ? `runs/${id}` : name;
  topbar.setPlace(place);
  if (current?.key === key && current.page?.update) return current.page.update(place);
  const isFirst = current === null;
  current?.page?.unmount?.();
  current = { key, page: null };
  topbar.setStatus("");
  fill(main);
  scrollTo(0, 0);
  try {
    const module = await (PAGES[name] ?? PAGES[""])();
    if (mine !== turn) return;
    const root = fill(main, h("div.page")).firstChild;
    current.page = await module.mount(root, place, { setStatus: topbar.setStatus });
    if (mine !== turn) current.page?.unmount?.();
  } catch (problem) {
    if (mine === turn) fill(main, h("h1", { tabindex: -1 }, "This page could not be shown"), problemBox(problem));
  }
  if (!isFirst && mine === turn) main.querySelector("h1")?.focus();
}

router.follow(show);
