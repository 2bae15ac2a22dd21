/** What can be asked of a run. Buttons in the API's words; those that lose something ask first. */

import { path, post, remove } from "../api.js";
import { h } from "../dom.js";
import { integer } from "../format.js";
import { go } from "../router.js";
import { isOffered, LABELS } from "../verbs.js";
import { confirm, openDialog } from "./dialog.js";
import { editDialog } from "./edit-dialog.js";
import { evaluateDialog } from "./evaluate-dialog.js";
import { openExtend } from "./extend-dialog.js";
import { problemBox } from "./problem.js";
import { resumeDialog } from "./resume-dialog.js";
import { runScheduling } from "./scheduling-dialog.js";
import { toast } from "./toast.js";

const DONE = {
  start: "Start requested.",
  resume: "Resume requested.",
  pause: "Pause requested: a checkpoint is saved first.",
  checkpoint: "Checkpoint requested for the next step.",
};
const SHOWN_FIRST = ["start", "resume", "pause", "extend"];
const IN_MENU = ["edit", "schedule", "checkpoint", "evaluate", "resumeWith", "cancel", "delete"];

const MENU_LABELS = { schedule: "Priority and hours…", resumeWith: "Resume with overrides…", cancel: "Cancel…", delete: "Delete…" };
const LIKE = { schedule: "edit", resumeWith: "resume" }; // legal when that is

/** A cancel does not save: what came after the last checkpoint is lost. */
function lossOf({ progress, isActive }) {
  const kept = "Its checkpoints stay, and a resume continues from the last one.";
  const since = progress.step - (progress.last_checkpoint?.step ?? 0);
  if (!isActive() || since <= 0) return kept;
  return `It ends without saving: ${integer(since)} steps since the last checkpoint are lost. ${kept} Pause saves first.`;
}

/** @param {import("../pages/run.js").RunContext} run */
export function createActions(run) {
  const of = (verb) => path("runs", run.detail.id, verb);
  const handlers = {
    start: () => ask("start", () => post(of("start"))),
    resume: () => ask("resume", () => post(of("resume"))),
    pause: () => ask("pause", () => post(of("pause"))),
    checkpoint: () => ask("checkpoint", () => post(of("checkpoints"), { pin: false })),
    extend: () => openExtend(run).then((done) => done && finish("Extended.")),
    evaluate: () => evaluateDialog(run.detail).then((job) => job && finish("Evaluation requested.")),
    edit: () => editDialog(run.detail).then((done) => done && finish("Saved.")),
    schedule: () => runScheduling(run.detail.id).then((done) => done && finish("Saved.")),
    resumeWith: () => resumeDialog(run.detail).then((done) => done && finish(DONE.resume)),
    cancel,
    delete: removeRun,
  };
  const buttons = new Map(SHOWN_FIRST.map((verb) => [verb, h("button", { type: "button", onclick: handlers[verb] }, LABELS[verb])]));
  const items = new Map(IN_MENU.map((verb) => [verb, h("button", {
    type: "button", role: "menuitem", class: verb === "delete" || verb === "cancel" ? "danger-text" : null,
    onclick: () => (closeMenu(), handlers[verb]()),
  }, MENU_LABELS[verb] ?? LABELS[verb])]));
  const menu = h("div.menu", { role: "menu", hidden: true, onkeydown: onMenuKey }, ...items.values());
  const more = h("button.icon", { type: "button", "aria-haspopup": "menu", "aria-expanded": "false", "aria-label": "More actions", onclick: toggleMenu }, "⋯");
  const element = h("div.actions", { role: "group", "aria-label": "Actions" }, ...buttons.values(), h("div.menu-host", {}, more, menu));
  const onOutside = (event) => element.contains(event.target) || closeMenu();

  function update(state) {
    const first = SHOWN_FIRST.find((verb) => verb !== "pause" && isOffered(verb, state));
    for (const [verb, button] of buttons) {
      button.hidden = !isOffered(verb, state);
      button.className = verb === first && !isOffered("pause", state) ? "primary" : "";
    }
    for (const [verb, item] of items) item.disabled = !isOffered(LIKE[verb] ?? verb, state);
  }

  async function ask(verb, act) {
    try {
      await act();
      finish(DONE[verb]);
    } catch (problem) {
      openDialog(`Could not ${LABELS[verb].toLowerCase()}`, (close) => h("div.dialog-body", {}, problemBox(problem),
        h("div.dialog-foot", {}, h("button.primary", { type: "button", onclick: () => close() }, "OK"))));
    }
  }

  function finish(text) {
    toast(text);
    return run.reload();
  }

  async function cancel() {
    const done = await confirm({
      title: `Cancel ${run.detail.name}?`,
      text: lossOf(run),
      agree: "Cancel the run", danger: true, act: () => post(of("cancel")),
    });
    if (done) finish("Cancel requested.");
  }

  async function removeRun() {
    const done = await confirm({
      title: `Delete ${run.detail.name}?`,
      text: "This permanently deletes its checkpoints, history, samples and logs.",
      agree: "Delete permanently", danger: true, typed: run.detail.name,
      act: () => remove(path("runs", run.detail.id)).then(() => true),
    });
    if (done) {
      toast(`${run.detail.name} is deleted.`);
      go([]);
    }
  }

  function toggleMenu() {
    menu.hidden = !menu.hidden;
    more.setAttribute("aria-expanded", String(!menu.hidden));
    if (menu.hidden) return closeMenu();
    document.addEventListener("pointerdown", onOutside);
    menu.querySelector("button:enabled")?.focus();
  }

  function closeMenu() {
    menu.hidden = true;
    document.removeEventListener("pointerdown", onOutside);
    more.setAttribute("aria-expanded", "false");
  }

  function onMenuKey(event) {
    const enabled = [...menu.querySelectorAll("button:enabled")];
    const at = enabled.indexOf(document.activeElement);
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step) enabled[(at + step + enabled.length) % enabled.length]?.focus();
    else if (event.key === "Escape") {
      closeMenu();
      more.focus();
    } else return;
    event.preventDefault();
  }

  return { element, update };
}
