/** One banner for the whole page while the daemon does not answer; the values below it are greyed. */

import { onChange } from "../connection.js";
import { fill, h, setText } from "../dom.js";
import { duration, exactly } from "../format.js";

export function awayBanner() {
  const age = h("b");
  const element = h("div.away-banner", { role: "status", hidden: true });
  let since = 0;
  let timer = 0;

  onChange((away) => {
    clearInterval(timer);
    element.hidden = !away;
    document.documentElement.classList.toggle("is-away", Boolean(away));
    if (!away) return fill(element);
    since = away.since;
    timer = setInterval(tick, 1000);
    tick();
    fill(element, "The daemon has not answered for ", age, h("span", {}, `. The values shown are from ${exactly(since)}; a run that is training continues without the daemon.`));
  });

  function tick() {
    setText(age, duration(Math.max(1, Math.round(Date.now() / 1000 - since))));
  }

  return element;
}
