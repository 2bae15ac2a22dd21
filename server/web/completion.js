/** A streamed answer of POST /v1/completions. */

import { login, problemOf } from "./api.js";
import { createParser } from "./sse.js";

/**
 * @param {any} body @param {AbortSignal} signal
 * @param {(choice: {index: number, text: string, logprobs: any}) => void} onChoice for every piece
 * @returns {Promise<void>} when all is written; rejects with a Problem
 */
export async function completion(body, signal, onChoice) {
  const headers = { Accept: "text/event-stream", "Content-Type": "application/json" };
  const ask = () => fetch("v1/completions", { method: "POST", headers, body: JSON.stringify(body), signal, cache: "no-store" });
  let response = await ask();
  if (response.status === 401) {
    await login();
    response = await ask();
  }
  if (!response.ok) throw problemOf(response, await response.text());
  let broken = null;
  const parse = createParser(({ data }) => {
    if (data?.error) broken = problemOf({ status: 500, statusText: "" }, JSON.stringify({ title: "The answer was cut short", detail: data.error.message }));
    for (const choice of data?.choices ?? []) onChoice(choice);
  });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (;;) {
    const { done, value } = await reader.read();
    if (done) break;
    parse(value);
  }
  if (broken) throw broken;
}
