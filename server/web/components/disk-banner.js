/** One line on every page while the disk is full: runs wait, and little can be asked for. */

import { get } from "../api.js";
import { h, setText } from "../dom.js";
import { bytes } from "../format.js";

const EVERY_MILLISECONDS = 15_000;

/** `look()` asks at once; a page that shows the disk by itself passes the answer to `take`. */
export function diskBanner() {
  const element = h("div.disk-banner", { role: "status", hidden: true });
  setInterval(() => !document.hidden && look(), EVERY_MILLISECONDS);
  addEventListener("traind:system", ({ detail }) => take(detail));

  async function look() {
    await get("v1/system").then(take, () => {}); // the page itself says when nothing answers
  }

  function take(system) {
    element.hidden = !system.disk_is_full;
    setText(element, system.disk_is_full ? `The disk is full: ${bytes(system.disk_free_bytes)} left. Runs wait until there is room, then continue by themselves.` : "");
  }

  return { element, look };
}
