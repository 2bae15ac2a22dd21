/**
 * Live events. One stream, taken up again after a lost connection with Last-Event-ID, so that a
 * restart of the daemon leaves neither a gap nor a repeat. Read by fetch rather than EventSource:
 * the first request can name the last event already shown, and every kind of event arrives.
 *
 * A hidden page holds no stream: browsers allow six connections to one host, tabs are many.
 */

import { login } from "./api.js";
import * as connection from "./connection.js";

const FIRST_WAIT = 250;
const LONGEST_WAIT = 5_000;
const SILENCE = 60_000; // longer than a few heartbeats: the connection is dead

/**
 * @typedef {{event: string, data: any, id: string|null}} Message
 * @param {string} address
 * @param {{onMessage: (m: Message) => void, onStatus?: (s: "live"|"waiting") => void,
 *   onReconnect?: () => void, after?: number|string|null}} options
 *   after: id of the last event already known
 * @returns {() => void} ends the stream
 */
export function follow(address, { onMessage, onStatus = () => {}, onReconnect = () => {}, after }) {
  let last = after ?? null;
  let wait = FIRST_WAIT;
  let open = null;
  let timer = 0;
  let closed = false;
  let connections = 0;

  async function connect() {
    if (closed || open || document.hidden) return;
    open = new AbortController();
    try {
      await read(open);
    } catch {
      // a lost connection is ordinary: the next one takes up where this one ended
      if (!closed && !document.hidden) connection.unanswered();
    }
    open = null;
    if (closed) return;
    if (!document.hidden) onStatus("waiting");
    timer = setTimeout(connect, wait);
    wait = Math.min(2 * wait, LONGEST_WAIT);
  }

  async function read(control) {
    const headers = { Accept: "text/event-stream" };
    if (last !== null) headers["Last-Event-ID"] = String(last);
    const response = await fetch(address, { headers, signal: control.signal, cache: "no-store" });
    if (response.status === 401) await login();
    if (!response.ok || !response.body) throw new Error(`HTTP ${response.status}`);
    connection.answered();
    onStatus("live");
    if (connections++) onReconnect();
    const parser = createParser(deliver);
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let watchdog = setTimeout(() => control.abort(), SILENCE);
    try {
      for (;;) {
        const { done, value } = await reader.read();
        clearTimeout(watchdog);
        if (done) return;
        connection.answered();
        watchdog = setTimeout(() => control.abort(), SILENCE);
        parser(value);
      }
    } finally {
      clearTimeout(watchdog);
    }
  }

  function deliver(message) {
    wait = FIRST_WAIT;
    if (message.id !== null) {
      if (last !== null && Number(message.id) <= Number(last)) return;
      last = message.id;
    }
    if (message.event !== "bye") onMessage(message);
  }

  function onVisibility() {
    if (document.hidden) open?.abort();
    else {
      clearTimeout(timer);
      wait = FIRST_WAIT;
      connect();
    }
  }

  document.addEventListener("visibilitychange", onVisibility);
  connect();
  return () => {
    closed = true;
    clearTimeout(timer);
    document.removeEventListener("visibilitychange", onVisibility);
    open?.abort();
  };
}

/**
 * Messages out of chunks of an event stream (WHATWG HTML, section 9.2).
 * @param {(m: Message) => void} emit
 * @returns {(chunk: string) => void}
 */
export function createParser(emit) {
  let rest = "";
  let event = "message";
  let data = [];
  let id = null;

  function line(text) {
    if (text === "") {
      if (data.length) emit({ event, data: decode(data.join("\n")), id });
      event = "message";
      data = [];
      id = null;
      return;
    }
    const colon = text.indexOf(":");
    const name = colon < 0 ? text : text.slice(0, colon);
    const value = colon < 0 ? "" : text.slice(colon + 1).replace(/^ /, "");
    if (name === "event") event = value;
    else if (name === "data") data.push(value);
    else if (name === "id") id = value;
  }

  return (chunk) => {
    rest += chunk;
    const held = rest.endsWith("\r"); // perhaps half of a CRLF
    const lines = (held ? rest.slice(0, -1) : rest).split(/\r\n|\r|\n/);
    rest = lines.pop() + (held ? "\r" : "");
    lines.forEach(line);
  };
}

function decode(text) {
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
}
