/**
 * What a view asks of the daemon, asked again until it is answered. A daemon that restarts, or a
 * tunnel that drops, is ordinary: no view may need a reload of the page to get over it.
 */

import { problemBox } from "./components/problem.js";
import { fill } from "./dom.js";

export const AGAIN_MILLISECONDS = 1_500;

/**
 * load(...args) asks and shows; of several calls only the newest is shown. A problem stands in
 * `refused`, and one that may pass is asked about again by itself. `host` is busy until the first
 * answer, whichever it is.
 * @template T
 * @param {{ask: (...args: any[]) => Promise<T>, show: (answer: T) => void, host: HTMLElement,
 *   refused: HTMLElement, refuse?: (problem: any) => void}} view
 *   refuse: says a problem in the view's own way
 */
export function createLoader({ ask, show, host, refused, refuse = (problem) => fill(refused, problemBox(problem)) }) {
  let turn = 0;
  let timer = 0;
  host.setAttribute("aria-busy", "true");

  async function load(...args) {
    const mine = ++turn;
    clearTimeout(timer);
    try {
      const answer = await ask(...args);
      if (mine !== turn) return;
      fill(refused);
      show(answer);
    } catch (problem) {
      if (mine !== turn || problem.name === "AbortError") return;
      refuse(problem);
      if (problem.mayPass) timer = setTimeout(() => load(...args), AGAIN_MILLISECONDS);
    }
    host.removeAttribute("aria-busy");
  }

  function close() {
    turn++;
    clearTimeout(timer);
  }

  return { load, close };
}
