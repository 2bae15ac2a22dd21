/** The queue: who runs where, who waits for what and until when; order, priorities and hours changed here. */

import { get, patch, path } from "../api.js";
import { bounds } from "../catalog.js";
import { problemBox } from "../components/problem.js";
import { deviceScheduling, runScheduling } from "../components/scheduling-dialog.js";
import { table } from "../components/table.js";
import { toast } from "../components/toast.js";
import { fill, h, setText, userText } from "../dom.js";
import { integer, watts, when } from "../format.js";
import { reordered } from "../hours.js";
import { createLoader } from "../loader.js";
import { link } from "../router.js";

const EVERY_MILLISECONDS = 4_000;

export function mount(root) {
  const [refused, denied, places] = [h("div"), h("div"), h("div")];
  const rows = h("ol.waiting", { "aria-label": "Waiting runs in order" });
  const note = h("p.soft.note-line");
  const said = h("p.visually-hidden", { role: "status" });
  let waiting = [];
  let isHeld = false; // a row is dragged, or a field is edited: the list stays as it is
  let drawn = "";
  fill(root, h("div.page-head", {}, h("h1", { tabindex: -1 }, "Queue")), refused, denied,
    h("h2", {}, "Devices"), places, h("h2.past-head", {}, "Waiting"), rows, note, said);
  const { load, close } = createLoader({ host: places, refused, ask: () => get("v1/queue"), show });
  const timer = setInterval(() => !document.hidden && load(), EVERY_MILLISECONDS);
  load();

  function show(queue) {
    const now = JSON.stringify(queue);
    if (isHeld || now === drawn) return;
    drawn = now;
    waiting = queue.waiting;
    const focused = document.activeElement?.dataset?.handle;
    fill(places, table("Devices", PLACES, queue.places, { empty: "No device was found." }));
    fill(rows, waiting.length ? waiting.map(rowOf) : h("li.empty", {}, "No run is waiting."));
    rows.querySelector(`[data-handle="${focused}"]`)?.focus();
    const more = queue.num_waiting - waiting.length;
    setText(note, [more > 0 && `${integer(more)} more runs are waiting behind these.`, queue.next_change_at && `The next change of hours is at ${when(queue.next_change_at)}.`,
      waiting.length > 1 && "Drag a row by its handle, or press the arrow keys on it. A run with a higher priority preempts one that is training."].filter(Boolean).join(" "));
  }

  function rowOf(entry, i) {
    const priority = h("input", { type: "number", ...bounds("spec", "/priority"), value: entry.priority, "aria-label": `Priority of ${entry.name}`,
      onfocus: () => (isHeld = true), onblur: () => (isHeld = false), onchange: () => change([[entry.run, Number(priority.value)]]) });
    const handle = h("button.icon.handle", { type: "button", dataset: { handle: entry.run }, "aria-label": `Move ${entry.name}, place ${entry.position}: arrow up or down`, onkeydown: (event) => onArrow(event, i), onpointerdown: (event) => onTouch(event, i) }, "⠿");
    return h("li.card", {
      draggable: "true", dataset: { run: entry.run }, ondragstart: (event) => lift(event, i), ondragend: drop,
      ondragover: (event) => event.preventDefault(), ondrop: (event) => (event.preventDefault(), moveTo(Number(event.dataTransfer.getData("text/plain")), i)),
    }, handle, h("b.place", {}, integer(entry.position)),
    h("div.who", {}, h("a.run-name", { href: link(["runs", entry.name]) }, userText(entry.name)), h("span.soft", {}, entry.devices.join(", "))),
    h("div.why", {}, h("span", {}, entry.reason_message), entry.until && h("span.soft", {}, ` Until ${when(entry.until)}.`)),
    h("label.field.narrow", {}, h("span", {}, "Priority"), priority),
    h("button.small", { type: "button", "aria-label": `Hours of ${entry.name}`, onclick: () => runScheduling(entry.run).then(changed) }, "Hours…"));
  }

  function lift(event, i) {
    isHeld = true;
    event.dataTransfer.setData("text/plain", String(i));
    event.dataTransfer.effectAllowed = "move";
  }

  function drop() {
    isHeld = false;
    load();
  }

  /** A finger or pen drags the handle; a mouse drags the row, which browsers do by themselves. */
  function onTouch(event, from) {
    if (event.pointerType === "mouse") return;
    const handle = event.currentTarget;
    const row = rows.children[from];
    let over = null;
    isHeld = true;
    row.draggable = false; // a long press would begin the browser's own drag
    handle.setPointerCapture(event.pointerId);
    const mark = (next) => {
      over?.classList.remove("over");
      over = next === row ? null : next;
      over?.classList.add("over");
    };
    const end = (isDropped) => {
      const to = isDropped && over ? [...rows.children].indexOf(over) : from;
      handle.onpointermove = handle.onpointerup = handle.onpointercancel = null;
      row.draggable = true;
      mark(null);
      if (to === from) drop();
      else moveTo(from, to);
    };
    handle.onpointermove = ({ clientX, clientY }) => mark(document.elementFromPoint(clientX, clientY)?.closest(".waiting > [data-run]") ?? null);
    handle.onpointerup = () => end(true);
    handle.onpointercancel = () => end(false);
  }

  function onArrow(event, i) {
    const to = i + ({ ArrowUp: -1, ArrowDown: 1 }[event.key] ?? 0);
    if (to === i) return;
    event.preventDefault();
    if (to >= 0 && to < waiting.length) moveTo(i, to);
  }

  async function moveTo(from, to) {
    if (from === to || !waiting[from] || !waiting[to]) return;
    const name = waiting[from].name;
    const changes = reordered(waiting, from, to);
    if (!changes) return fill(denied, problemBox({ title: `The lowest priority is ${String(bounds("spec", "/priority").min).replace("-", "−")}`, detail: "Raise the priority of a run above it first." }));
    await change(changes);
    setText(said, `${name} is now at position ${to + 1}.`);
  }

  async function change(changes) {
    try {
      for (const [run, priority] of changes) await patch(path("runs", run), { priority });
      fill(denied);
    } catch (problem) {
      fill(denied, problemBox(problem));
    }
    isHeld = false;
    drawn = "";
    await load();
  }

  function changed(answer) {
    if (!answer) return;
    toast("Saved.");
    load();
  }

  const PLACES = [
    { label: "Device", cell: (place) => [h("b", {}, place.device), h("small", {}, userText(place.name))] },
    { label: "Now", cell: nowOf },
    { label: "Hours", cell: openOf },
    { label: "", cell: ({ device }) => h("button.small", { type: "button", "aria-label": `Hours of ${device}`, onclick: () => deviceScheduling(device).then(changed) }, "Hours…") },
  ];

  return { unmount: () => (clearInterval(timer), close()) };
}

function nowOf({ run, job, neighbour }) {
  return [
    run && h("a", { href: link(["runs", run]) }, userText(run)), job && h("a", { href: link(["jobs", job]) }, `job ${job}`),
    neighbour && h("span.tag", { dataset: { tone: "warn" } }, `used by ${neighbour}`), !run && !job && !neighbour && h("span.muted", {}, "free"),
  ];
}

function openOf({ is_open: isOpen, closes_at: closes, opens_at: opens, too_hot: tooHot, power_limit_watts: limit, problems }) {
  const warn = (text) => h("span.tag", { dataset: { tone: "warn" } }, text);
  return [
    isOpen ? (closes ? `open until ${when(closes)}` : "open") : warn(opens ? `closed until ${when(opens)}` : "closed"),
    tooHot && h("small", {}, tooHot), limit !== null && h("small", {}, `limited to ${watts(limit)}`), problems.map((text) => h("small", {}, text)),
  ];
}
