/**
 * Let checkpoints write: one prompt, two of them side by side with one seed, token by token. What was
 * written is kept in this browser. Every token tells its log-probability.
 */

import { get, Problem } from "../api.js";
import { bounds } from "../catalog.js";
import { problemBox } from "../components/problem.js";
import { choice } from "../components/resume-dialog.js";
import { completion } from "../completion.js";
import { fill, h, setText, userText } from "../dom.js";
import { fixed, integer, percent, rate, when } from "../format.js";
import { createLoader } from "../loader.js";
import * as prefs from "../prefs.js";
import { replaceQuery } from "../router.js";

const KEPT = 30;
const KEY = "playground";

export function mount(root, place) {
  const remembered = read();
  const refused = h("div");
  const prompt = h("textarea", { rows: 4, required: true, value: place.query.prompt ?? remembered.prompt ?? "The capital of France is" });
  const number = (key, otherwise, rest = {}) => h("input", { type: "number", step: "any", ...bounds("completion", `/${key}`), value: remembered[key] ?? otherwise, ...rest });
  const settings = {
    max_tokens: number("max_tokens", 64),
    temperature: number("temperature", 0.8),
    top_k: number("top_k", "", { placeholder: "all" }),
    top_p: number("top_p", 1),
    seed: number("seed", 1),
    n: number("n", 1),
  };
  const labels = { max_tokens: "Tokens", temperature: "Temperature", top_k: "Top-k", top_p: "Top-p", seed: "Seed", n: "Answers" };
  const panes = [createPane("First model"), createPane("Second model")];
  const write = h("button.primary.large", { type: "submit" }, "Write");
  const stop = h("button", { type: "button", hidden: true, onclick: () => control?.abort() }, "Stop");
  const past = h("ol.past");
  let control = null;

  fill(root,
    h("div.page-head", {}, h("h1", { tabindex: -1 }, "Playground")), refused,
    h("form.playground", { onsubmit: submit },
      h("div.card.pad.stack", {},
        h("label.field", {}, h("span", {}, "Prompt"), prompt),
        h("div.field-grid", {}, Object.entries(settings).map(([key, input]) => h("label.field", {}, h("span", {}, labels[key]), input))),
        h("div.row", {}, write, stop, h("span.soft", {}, "Both models get the same prompt, settings and seed."))),
      h("div.panes", {}, panes.map((pane) => pane.element))),
    h("h2.past-head", {}, "History, kept in this browser"), past);
  drawPast();

  const { load, close } = createLoader({ host: panes[0].element, refused, ask: () => get("v1/models"), show: offer });
  load();

  function offer({ data }) {
    const names = data.map((model) => model.id);
    const [first = names[0], second = ""] = (place.query.models ?? remembered.models ?? "").split(",").filter((name) => names.includes(name));
    panes[0].offer(names, first ?? "");
    panes[1].offer(["", ...names], second);
    if (!names.length) fill(refused, h("p.empty", {}, "No checkpoint yet: a model appears here after its first checkpoint."));
  }

  function asked() {
    const given = Object.entries(settings).filter(([, input]) => input.value !== "").map(([key, input]) => [key, Number(input.value)]);
    return { prompt: prompt.value, logprobs: 3, stream: true, ...Object.fromEntries(given) };
  }

  async function submit(event) {
    event.preventDefault();
    const body = asked();
    const chosen = panes.filter((pane) => pane.model());
    if (!chosen.length) return;
    const models = chosen.map((pane) => pane.model());
    prefs.write(`${KEY}-settings`, JSON.stringify({ ...Object.fromEntries(Object.entries(settings).map(([key, input]) => [key, input.value])), prompt: body.prompt, models: models.join(",") }));
    replaceQuery({ models: models.join(",") });
    control = new AbortController();
    write.disabled = true;
    stop.hidden = false;
    const texts = await Promise.all(chosen.map((pane) => pane.run(body, control.signal)));
    write.disabled = false;
    stop.hidden = true;
    keep({ at: Date.now() / 1000, prompt: body.prompt, seed: body.seed, temperature: body.temperature, answers: models.map((model, i) => ({ model, texts: texts[i] })) });
  }

  function keep(entry) {
    if (!entry.answers.some(({ texts }) => texts.some(Boolean))) return;
    prefs.write(`${KEY}-past`, JSON.stringify([entry, ...pastOf()].slice(0, KEPT)));
    drawPast();
  }

  function drawPast() {
    const entries = pastOf();
    fill(past, entries.length ? entries.map((entry) => h("li.card.pad", {},
      h("p.soft", {}, `${when(entry.at)}, seed ${entry.seed ?? "drawn"}, temperature ${entry.temperature}`),
      entry.answers.map(({ model, texts }) => h("figure.sample", {}, h("figcaption", {}, userText(model)),
        texts.map((text) => h("pre", { dir: "auto" }, h("b", {}, entry.prompt), text)))))) : h("li.empty", {}, "Nothing yet."));
  }

  return { unmount: () => (control?.abort(), close()) };
}

/** One model and what it writes. */
function createPane(label) {
  const model = choice([["", "…"]]);
  model.setAttribute("aria-label", label);
  const status = h("p.soft", { role: "status" });
  const answers = h("div.answers", { "aria-live": "off" });
  const element = h("section.card.pad.pane", { "aria-label": label }, model, status, answers);

  function offer(names, chosen) {
    fill(model, names.map((name) => h("option", { value: name, selected: name === chosen }, name || "none")));
  }

  /** @returns {Promise<string[]>} the text of each answer */
  async function run(body, signal) {
    const texts = Array.from({ length: body.n ?? 1 }, () => ({ text: "", host: userText("", "pre") }));
    fill(answers, texts.map(({ host }) => h("figure.sample", {}, host)));
    texts.forEach(({ host }) => host.append(h("b", {}, body.prompt)));
    setText(status, "Starting: the first request loads the model.");
    const began = performance.now();
    let tokens = 0;
    try {
      await completion({ ...body, model: model.value }, signal, (one) => {
        const into = texts[one.index];
        if (!into) return;
        for (const piece of piecesOf(one)) {
          into.text += piece.text;
          into.host.append(tokenOf(piece));
          tokens += 1;
        }
        setText(status, `${integer(tokens)} tokens, ${rate((1000 * tokens) / (performance.now() - began))}`);
      });
    } catch (problem) {
      if (problem.name === "AbortError") setText(status, `stopped after ${integer(tokens)} tokens`);
      else fill(answers, problemBox(problem instanceof Problem ? problem : { title: "The answer was cut short", detail: problem.message }));
    }
    return texts.map(({ text }) => text);
  }

  return { element, offer, run, model: () => model.value };
}

/** A chunk's text by tokens, where it tells them. */
export function piecesOf({ text, logprobs }) {
  const { tokens = [], token_logprobs: own = [], top_logprobs: tops = [] } = logprobs ?? {};
  if (!tokens.length || tokens.join("") !== text) return text ? [{ text, logprob: own[0] ?? null, top: tops[0] ?? null }] : [];
  return tokens.map((token, i) => ({ text: token, logprob: own[i] ?? null, top: tops[i] ?? null }));
}

function tokenOf({ text, logprob, top }) {
  if (logprob === null) return h("span", {}, text);
  const others = Object.entries(top ?? {}).map(([token, value]) => `${JSON.stringify(token)} ${percent(Math.exp(value), 1)}`);
  const said = [`log-probability ${fixed(logprob, 3)} (${percent(Math.exp(logprob), 1)})`, ...others].join("\n");
  return h("span.token", { title: said, style: { "--doubt": String(Math.min(1, Math.max(0, -logprob / 6))) } }, text);
}

function read() {
  try {
    return JSON.parse(prefs.read(`${KEY}-settings`, "{}"));
  } catch {
    return {};
  }
}

function pastOf() {
  try {
    return JSON.parse(prefs.read(`${KEY}-past`, "[]"));
  } catch {
    return [];
  }
}
