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
