/** One run in the list. `update` touches only what changed, so that nothing jumps. */

import { conditionLine, reasonSentence } from "../condition.js";
import { fill, h, setText, userText } from "../dom.js";
import { link } from "../router.js";
import { COLUMNS, tagsOf } from "./run-columns.js";
import { sparkline } from "./sparkline.js";
import { progressBar, setState, stateBadge } from "./state.js";

/** @param {any} run RunSummary @param {string[]} columns keys of COLUMNS @param {(isChosen: boolean) => void} onChoose */
export function createRunRow(run, columns, onChoose) {
  const tick = h("input", { type: "checkbox", "aria-label": `Select ${run.name}`, onchange: () => onChoose(tick.checked) });
  const title = h("bdi.run-title.clip", { dir: "auto" });
  const tags = h("span.run-tags");
  const element = h("tr", { role: "row" });
  let shown = run;
  let cells = [];
  setColumns(columns);

  function setColumns(keys) {
    cells = keys.map((key) => (DRAWN[key] ?? numberCell)(key, shown));
    fill(element,
      h("td.pick", { role: "cell" }, h("label.hit", {}, tick)),
      h("td.who", { role: "cell" }, h("a.run-name.clip", { href: link(["runs", shown.name]) }, userText(shown.name)), title, tags),
      cells.map((cell) => cell.element));
    update(shown);
  }

  function update(next) {
    shown = next;
    setText(title, next.title ?? "");
    title.hidden = !next.title;
    const words = tagsOf(next);
    if (tags.textContent !== words.join("")) fill(tags, words.map((tag) => h("span.tag", {}, tag)));
    tags.hidden = !words.length;
    for (const cell of cells) cell.update(next);
  }

  const choose = (isChosen) => (tick.checked = isChosen);

  return { element, update, setColumns, choose };
}

function numberCell(key) {
  const { label, text, title } = COLUMNS[key];
  const element = h("td.num", { role: "cell", class: `num col-${key}`, dataset: { label } });
  function update(run) {
    setText(element, text(run));
    if (title) element.title = title(run);
  }
  return { element, update };
}

/** The cells that are more than a number. */
const DRAWN = {
  state() {
    const badge = stateBadge("created");
    const reason = h("span.reason");
    return {
      element: h("td.state-cell", { role: "cell" }, badge, reason),
      update(run) {
        setState(badge, run);
        setText(reason, reasonOf(run));
        reason.title = reasonSentence(run);
      },
    };
  },
  progress(_, run) {
    const bar = progressBar(`Progress of ${run.name}`);
    return { element: h("td.progress-cell", { role: "cell" }, bar.element), update: bar.update };
  },
  spark() {
    const element = h("td.spark-cell", { role: "cell" });
    let drawn = null;
    return {
      element,
      update(run) {
        const values = run.sparkline ?? [];
        if (values.join() === drawn) return;
        drawn = values.join();
        element.replaceChildren(sparkline(values, `Loss of ${run.name} so far`));
      },
    };
  },
};

/** What a person wants to know next to the state; nothing to say about a run that simply runs. */
export function reasonOf(run) {
  const inTheWay = conditionLine(run);
  if (inTheWay) return inTheWay;
  if (run.state === "running" && run.reason === "requested") return "";
  if (run.queue_position !== null && run.queue_position !== undefined) return `Place ${run.queue_position} in the queue. ${reasonSentence(run)}`;
  return reasonSentence(run);
}
