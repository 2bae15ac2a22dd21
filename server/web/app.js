/** The page's composition root: the bar at the top, and one page at a time below it. */

import { onUnauthorized } from "./api.js";
import * as catalog from "./catalog.js";
import { awayBanner } from "./components/away.js";
import { diskBanner } from "./components/disk-banner.js";
import { askForToken } from "./components/login.js";
import { problemBox } from "./components/problem.js";
import { createTopbar } from "./components/topbar.js";
import { watch } from "./connection.js";
import { fill, h } from "./dom.js";
import { AGAIN_MILLISECONDS } from "./loader.js";
import * as compare from "./pages/compare.js";
import * as create from "./pages/create.js";
import * as groups from "./pages/groups.js";
import * as help from "./pages/help.js";
import * as jobs from "./pages/jobs.js";
import * as playground from "./pages/playground.js";
import * as queue from "./pages/queue.js";
import * as run from "./pages/run.js";
import * as runs from "./pages/runs.js";
import * as router from "./router.js";

// All at once, never on demand: a browser remembers a module that failed to arrive, so one asked
// for while the daemon restarts would be missing until the page is loaded anew.
const PAGES = { "": runs, runs: run, compare, playground, jobs, queue, groups, help, new: create };

// The list asks for the machine, and a run says what is in its way: neither asks once more at first.
const SAYS_ITSELF = new Set(["", "runs"]);

onUnauthorized(askForToken);
const topbar = createTopbar(document.getElementById("topbar"));
const main = document.getElementById("main");
const disk = diskBanner();
main.before(awayBanner(), disk.element);
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
  const key = (name === "runs" || name === "groups") && id ? `${name}/${id}` : name;
  topbar.setPlace(place);
  if (current?.key === key && current.page?.update) return current.page.update(place);
  const isFirst = current === null;
  current?.page?.unmount?.();
  current = { key, page: null };
  topbar.setStatus("");
  scrollTo(0, 0);
  await mount(PAGES[name] ?? PAGES[""], place, mine);
  if (!isFirst && mine === turn) main.querySelector("h1")?.focus();
}

/** What stands in the way and may pass stays on the page until it has passed. */
async function mount(module, place, mine) {
  const root = h("div.page", { "aria-busy": "true" });
  const refused = h("div");
  fill(main, refused, root);
  for (;;) {
    try {
      await catalog.load();
      const page = await module.mount(root, place, { setStatus: topbar.setStatus });
      if (mine !== turn) return page?.unmount?.();
      current.page = page;
      if (!SAYS_ITSELF.has(place.parts[0] ?? "")) disk.look();
      break;
    } catch (problem) {
      if (mine !== turn) return;
      fill(refused, h("h1", { tabindex: -1 }, "This page could not be shown"), problemBox(problem));
      if (!problem.mayPass) break;
      await new Promise((resolve) => setTimeout(resolve, AGAIN_MILLISECONDS));
      if (mine !== turn) return;
    }
  }
  if (current.page) refused.remove();
  root.removeAttribute("aria-busy");
}

watch();
router.follow(show);
dispatchEvent(new Event("traind:started"));
