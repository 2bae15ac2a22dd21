/** The trainer's own words: the tail of its log, refreshed while it runs. */

import { get, list, path } from "../../api.js";
import { choice } from "../../components/resume-dialog.js";
import { fill, h, setText } from "../../dom.js";
import { createLoader } from "../../loader.js";

const EVERY_MILLISECONDS = 3_000;
const TAIL_LINES = 400;

export function mount(root, run) {
  const text = h("pre.log", { tabindex: 0, role: "log", "aria-label": "Log", "aria-live": "off" });
  const refused = h("div");
  const attempt = choice([["", "newest attempt"]]);
  attempt.setAttribute("aria-label", "Attempt");
  attempt.addEventListener("change", () => tail.load(true));
  fill(root, h("div.row.tab-tools", {}, h("span.soft", {}, `The last ${TAIL_LINES} lines of`), attempt), refused, text);
  const attempts = createLoader({ host: attempt, refused, ask: () => list(path("runs", run.detail.id, "attempts")), show: offer });
  const tail = createLoader({ host: text, refused, ask: askTail, show });
  const timer = setInterval(() => !document.hidden && run.isActive() && tail.load(), EVERY_MILLISECONDS);
  attempts.load();
  tail.load(true);

  function offer(items) {
    const offered = new Set([...attempt.options].map((option) => option.value));
    const fresh = items.filter((a) => !offered.has(String(a.number))).sort((a, b) => b.number - a.number);
    attempt.options[0].after(...fresh.map((a) => h("option", { value: String(a.number) }, `attempt ${a.number}`)));
  }

  async function askTail(toTheEnd = false) {
    const said = await get(path("runs", run.detail.id, "logs"), { tail: TAIL_LINES, attempt: attempt.value }, { accept: "text/plain" });
    return { said, toTheEnd };
  }

  /** Follows the end, unless somebody reads further up. */
  function show({ said, toTheEnd }) {
    const stays = !toTheEnd && text.scrollTop + text.clientHeight < text.scrollHeight - 30;
    setText(text, said || "The log is empty.");
    if (!stays) text.scrollTop = text.scrollHeight;
  }

  function unmount() {
    clearInterval(timer);
    attempts.close();
    tail.close();
  }

  return { unmount, onEvent: (event) => event.kind === "started" && attempts.load() };
}
