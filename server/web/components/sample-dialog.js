/** Let a checkpoint write: prompts in, text out. */

import { path, post } from "../api.js";
import { bounds } from "../catalog.js";
import { fill, h, userText } from "../dom.js";
import { integer } from "../format.js";
import { follow } from "../sse.js";
import { openDialog } from "./dialog.js";
import { waitFor } from "./jobs.js";
import { problemBox } from "./problem.js";

/** @param {any} detail RunDetail @param {any|null} checkpoint CheckpointView; null: the newest */
export function sampleDialog(detail, checkpoint = null) {
  const title = checkpoint ? `Sample from step ${integer(checkpoint.step)}` : `Sample from ${detail.name}`;
  return openDialog(title, (close) => {
    const prompt = h("textarea", { rows: 3, required: true }, detail.spec.evaluate.prompts[0] ?? "The capital of France is");
    const length = h("input", { type: "number", ...bounds("sample", "/max_tokens"), value: 64 });
    const temperature = h("input", { type: "number", step: "any", ...bounds("sample", "/temperature"), value: 0.8 });
    const go = h("button.primary", { type: "submit" }, "Sample");
    const said = h("div.sample-answer", { "aria-live": "polite" });
    return h("form.dialog-body", { onsubmit: submit },
      h("label.field", {}, h("span", {}, "Prompt"), prompt),
      h("div.field-row", {},
        h("label.field.grow", {}, h("span", {}, "Tokens"), length),
        h("label.field.grow", {}, h("span", {}, "Temperature (0 is greedy)"), temperature)),
      said,
      h("div.dialog-foot", {}, h("button", { type: "button", onclick: () => close() }, "Close"), go));

    async function submit(event) {
      event.preventDefault();
      go.disabled = true;
      const body = {
        prompts: [prompt.value], max_tokens: Number(length.value), temperature: Number(temperature.value),
        ...(checkpoint && { checkpoint: checkpoint.name }),
      };
      let stop = () => {};
      try {
        const begun = await post(path("runs", detail.id, "samples"), body);
        const state = h("p.soft");
        const text = userText("", "pre");
        fill(said, state, h("figure.sample", {}, userText(prompt.value, "b"), text));
        if (begun.where !== "inline") stop = writeAlong(begun, text);
        const job = await waitFor(begun, (now) => fill(state, `${now.state}${now.stage ? `: ${now.stage}` : ""}…`));
        fill(said, answerOf(job));
      } catch (problem) {
        fill(said, problemBox(problem));
      }
      stop();
      go.disabled = false;
    }
  }, { wide: true });
}

/** Shows the text while it is written. @returns {() => void} ends it */
function writeAlong(job, text) {
  const stop = follow(path("jobs", job.id, "stream"), {
    onMessage: ({ event, data }) => (event === "token" ? text.append(data.text) : stop()),
    onReconnect: () => fill(text), // what was written is said again
  });
  return stop;
}

function answerOf(job) {
  if (job.state !== "completed") return problemBox({ title: `The job ${job.state}`, detail: job.message });
  return (job.result?.samples ?? []).map((s) => h("figure.sample", {}, userText(s.prompt, "b"), userText(s.text, "pre")));
}
