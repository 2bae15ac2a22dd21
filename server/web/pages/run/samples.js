/** What the model wrote, prompt by prompt, as it learned. */

import { list, path } from "../../api.js";
import { sampleDialog } from "../../components/sample-dialog.js";
import { fill, h, userText } from "../../dom.js";
import { ago, integer } from "../../format.js";
import { createLoader } from "../../loader.js";

export function mount(root, run) {
  const host = h("div.sample-columns");
  const refused = h("div");
  const { load, close } = createLoader({ host, refused, ask: () => list(path("runs", run.detail.id, "samples")), show });
  fill(root, h("div.row.tab-tools", {}, h("span.spring"),
    h("button", { type: "button", onclick: () => sampleDialog(run.detail).then(load) }, "Sample now")), refused, host);
  load();

  function show(items) {
    fill(host, items.length ? columnsOf(items.filter((s) => !s.superseded)) : h("p.empty", {}, "No sample yet."));
  }

  return { unmount: close, onEvent: (event) => event.kind === "sample" && load() };
}

/** One column for each prompt, newest first: the progress of one thought is read downwards. */
function columnsOf(items) {
  const prompts = [...new Set(items.map((s) => s.prompt))];
  return prompts.map((prompt) =>
    h("section.card.pad", {}, h("h3", {}, userText(prompt)),
      items.filter((s) => s.prompt === prompt).sort((a, b) => b.step - a.step || b.id - a.id).slice(0, 40).map((s) =>
        h("figure.sample", {}, h("figcaption", {}, `step ${integer(s.step)}`, h("span.muted", {}, ` ${ago(s.unix_seconds)}`)),
          h("pre", { dir: "auto" }, h("b", {}, s.prompt), s.text.startsWith(s.prompt) ? s.text.slice(s.prompt.length) : s.text)))));
}
