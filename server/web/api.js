/**
 * Calls to the daemon. Every failure is a Problem: the daemon's own document (RFC 9457), or one of
 * the same shape when it does not answer.
 */

import * as connection from "./connection.js";

const TIMEOUT_MILLISECONDS = 30_000;
// A POST whose answer got lost was perhaps taken: with its key it can be said again. Together these
// outlast a restart of the daemon.
const POST_AGAIN_MILLISECONDS = [300, 700, 1_000, 2_000];

/** What went wrong, in the daemon's words. */
export class Problem extends Error {
  /** @param {{title: string, detail?: string, hint?: string, status?: number, type?: string,
   *   state?: string, legal?: string[], errors?: {pointer: string, detail: string}[]}} document */
  constructor(document) {
    super(document.detail || document.title);
    this.type = document.type ?? "about:blank";
    this.title = document.title ?? "Error";
    this.status = document.status ?? 0;
    this.detail = document.detail ?? "";
    this.hint = document.hint ?? null;
    this.state = document.state ?? null;
    this.legal = document.legal ?? null;
    this.errors = document.errors ?? [];
  }

  /** Nothing came back, or the daemon is busy: the same question may be answered in a while. */
  get mayPass() {
    return this.status === 0 || this.status === 429 || this.status >= 500;
  }
}

let askForToken = null;
let asking = null;

/** `ask` is called when the daemon wants a token; it resolves when there is a session. */
export function onUnauthorized(ask) {
  askForToken = ask;
}

/** One login at a time, whoever asks. */
export function login() {
  asking ??= Promise.resolve(askForToken?.()).finally(() => (asking = null));
  return asking;
}

export const get = (path, query, options) => call("GET", path, { query, ...options });
export const post = (path, body, options) => call("POST", path, { body, ...options });
/** A POST that only asks (a plan, a dry run): it may repeat, so it carries no key. */
export const ask = (path, body, options) => post(path, body, { key: null, ...options });
export const put = (path, body, options) => call("PUT", path, { body, ...options });
export const patch = (path, body, options) => call("PATCH", path, { body, ...options });
export const remove = (path, options) => call("DELETE", path, options);

/** Every item of a list, page by page, at most `limit`. */
export async function list(path, query = {}, { limit = 1000, signal } = {}) {
  const items = [];
  let after = query.after;
  for (;;) {
    const answer = await get(path, { ...query, after }, { signal });
    if (Array.isArray(answer)) return answer;
    items.push(...answer.data);
    if (!answer.has_more || !answer.next || items.length >= limit) return items;
    after = answer.next;
  }
}

/** "runs", name, "pause" -> "v1/runs/name/pause", each part escaped. */
export const path = (...parts) => `v1/${parts.map(encodeURIComponent).join("/")}`;

export function url(base, query = {}) {
  const given = Object.entries(query).filter(([, v]) => v !== undefined && v !== null && v !== "");
  return given.length ? `${base}?${new URLSearchParams(given)}` : base;
}

/** accept: "text/…" answers a string, anything else but JSON a Blob. */
async function call(method, base, { query, body, signal, key, accept } = {}, again = true) {
  const headers = { Accept: accept ?? "application/json, application/problem+json", "Traind-Client": "page" };
  if (body !== undefined) headers["Content-Type"] = "application/json";
  if (method === "POST" && key !== null) headers["Idempotency-Key"] = key ?? newKey();
  const request = { method, headers, body: body === undefined ? undefined : JSON.stringify(body), cache: "no-store" };
  const waits = headers["Idempotency-Key"] ? POST_AGAIN_MILLISECONDS : [];
  const { response, content } = await send(url(base, query), request, signal, waits);
  if (response.status === 401 && again && askForToken) {
    await login();
    return call(method, base, { query, body, signal, accept, key: headers["Idempotency-Key"] ?? null }, false);
  }
  if (!response.ok) throw problemOf(response, await content.text());
  if (response.status === 204) return null;
  if (accept === undefined) return JSON.parse(await content.text());
  return accept.startsWith("text/") ? content.text() : content;
}

/** The whole answer, or a Problem: the connection can be lost in the middle of it as well. */
async function send(address, request, signal, [wait, ...waits]) {
  const timeout = AbortSignal.timeout(TIMEOUT_MILLISECONDS);
  try {
    const response = await fetch(address, { ...request, signal: signal ? AbortSignal.any([signal, timeout]) : timeout });
    const content = await response.blob();
    connection.answered();
    return { response, content };
  } catch (error) {
    if (error.name === "AbortError") throw error;
    connection.unanswered();
    if (wait !== undefined) {
      await new Promise((resolve) => setTimeout(resolve, wait));
      return send(address, request, signal, waits);
    }
    throw new Problem({
      title: "The daemon does not answer",
      detail: "Nothing came back from the daemon. A run that is training continues without it.",
      hint: "Check that traind serve is running, and the tunnel if there is one. This page continues by itself.",
    });
  }
}

/** The daemon's document, or one made of the status. */
export function problemOf(response, text) {
  try {
    return new Problem({ status: response.status, ...JSON.parse(text) });
  } catch {
    return new Problem({ status: response.status, title: `HTTP ${response.status}`, detail: response.statusText });
  }
}

/** crypto.randomUUID exists only over https and on localhost; a LAN address is neither. */
function newKey() {
  const random = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(random, (b) => b.toString(16).padStart(2, "0")).join("");
}
