// Runs before the first paint, so that the theme never flashes. A classic script on purpose.
(function () {
  let chosen = null;
  try {
    chosen = localStorage.getItem("traind.theme");
  } catch {
    // storage may be forbidden: then the system's theme it is
  }
  const system = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  document.documentElement.dataset.theme = chosen === "light" || chosen === "dark" ? chosen : system;
})();
// What the page offers, asked for while its script is on the way: catalog.js takes it.
if (document.currentScript.dataset.page) globalThis.traindCatalog = fetch("v1/catalog", { headers: { Accept: "application/json" } })
  .then((answer) => (answer.ok ? answer.json() : null), () => null);
// Before anything else, and in no module: when a file of the page does not arrive, because the
// daemon went away in the middle, nothing else is there to say so. A classic script on purpose.
(function () {
  const KEY = "traind.loads"; // in a row, without a page: a file that is really missing must not spin
  const LONGEST_SECONDS = 30;
  let waiting = false;

  addEventListener("error", (event) => {
    const isFile = event.target instanceof HTMLScriptElement || event.target instanceof HTMLLinkElement;
    if (!isFile || waiting) return;
    waiting = true;
    const failed = Number(kept()) || 0;
    keep(failed + 1);
    say();
    wait(Math.min(LONGEST_SECONDS, 2 ** failed));
  }, true);

  // app.js is there, so all that it needs is there
  addEventListener("traind:started", () => keep(0));

  function wait(seconds) {
    setTimeout(async () => {
      const answered = await fetch("healthz", { cache: "no-store" }).then(() => true, () => false);
      if (answered) location.reload();
      else wait(1);
    }, 1000 * seconds);
  }

  function say() {
    const text = document.createElement("p");
    text.className = "empty";
    text.setAttribute("role", "alert");
    text.textContent = "The daemon does not answer. This page loads by itself when it does.";
    const show = () => document.getElementById("main").replaceChildren(text);
    if (document.getElementById("main")) show();
    else addEventListener("DOMContentLoaded", show);
  }

  function kept() {
    try {
      return sessionStorage.getItem(KEY);
    } catch {
      return null; // storage may be forbidden
    }
  }

  function keep(number) {
    try {
      sessionStorage.setItem(KEY, String(number));
    } catch {
      // then each wait is the first one
    }
  }
})();
