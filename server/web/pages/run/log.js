/** The trainer's own words: the tail of its log, refreshed while it runs. */

import { get, list, path } from "../../api.js";
import { choice } from "../../components/resume-dialog.js";
import { problemBox } from "../../components/problem.js";
import { fill, h } from "../../dom.js";

const EVERY_MILLISECONDS = 3_000;
const TAIL_LINES = 400;

export function mount(root, run) {
  const text = h("pre.log", { tabindex: 0, role: "log", "aria-label": "Log", "aria-live": "off" });
  const refused = h("div");
  const attempt = choice([["", "newest attempt"]]);
  attempt.setAttribute("aria-label", "Attempt");
  attempt.addEventListener("change", () => load());
  fill(root, h("div.row.tab-tools", {}, h("span.soft", {}, `The last ${TAIL_LINES} lines of`), attempt), refused, text);
  list(path("runs", run.detail.id, "attempts")).then((items) =>
    attempt.append(...items.reverse().map((a) => h("option", { value: String(a.number) }, `attempt ${a.number}`))), () => {});
  const timer = setInterval(() => !document.hidden && run.isActive() && load(), EVERY_MILLISECONDS);
  load(true);

  async function load(first = false) {
    const stays = !first && text.scrollTop + text.clientHeight < text.scrollHeight - 30;
    try {
      const said = await get(path("runs", run.detail.id, "logs"), { tail: TAIL_LINES, attempt: attempt.value }, { accept: "text/plain" });
      fill(refused);
      if (text.textContent !== said) text.textContent = said || "The log is empty.";
      if (!stays) text.scrollTop = text.scrollHeight;
    } catch (problem) {
      fill(refused, problemBox(problem));
    }
  }

  return { unmount: () => clearInterval(timer) };
}
