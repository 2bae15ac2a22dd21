/** The machine in one line: what computes, how full and how warm it is, who uses it. */

import { get } from "../api.js";
import { fill, h, userText } from "../dom.js";
import { bytes, celsius, flops, percent, watts } from "../format.js";
import { link } from "../router.js";

const EVERY_MILLISECONDS = 4_000;

/** @returns {{element: HTMLElement, stop: () => void}} */
export function deviceStrip() {
  const element = h("section.devices", { "aria-label": "This machine" }, h("div.device", {}, " "));
  let stopped = false;
  refresh();
  const timer = setInterval(() => !document.hidden && refresh(), EVERY_MILLISECONDS);

  async function refresh() {
    try {
      const system = await get("v1/system");
      dispatchEvent(new CustomEvent("traind:system", { detail: system }));
      if (!stopped) draw(element, system);
    } catch {
      // the list below says it when the daemon is away
    }
  }

  return { element, stop: () => ((stopped = true), clearInterval(timer)) };
}

function draw(element, system) {
  fill(element,
    system.devices.map(deviceLine),
    h("div.device", {},
      h("b", {}, "Disk"),
      meter("disk", system.disk_total_bytes - system.disk_free_bytes, system.disk_total_bytes),
      h("span", {}, `${bytes(system.disk_free_bytes)} free`)),
    system.warnings.map((text) => h("p.device-warning", {}, text)));
}

function deviceLine(device) {
  const owners = Object.entries(device.memory_by_owner).map(([who, size]) => `${who} ${bytes(size)}`).join(", ");
  const used = device.memory_used_bytes;
  return h("div.device", { title: owners || null },
    h("b", {}, userText(device.name)),
    device.memory_bytes && meter("memory", used ?? 0, device.memory_bytes),
    device.memory_bytes && h("span", {}, used === null ? bytes(device.memory_bytes) : `${bytes(used)} of ${bytes(device.memory_bytes)}`),
    device.utilisation !== null && h("span", {}, `${percent(device.utilisation)} busy`),
    device.power_watts !== null && h("span", {}, watts(device.power_watts)),
    device.temperature_celsius !== null && h("span", { dataset: { hot: device.temperature_celsius >= 85 ? "yes" : "no" } }, celsius(device.temperature_celsius)),
    device.peak_flops && h("span.muted.wide-only", { title: device.peak_flops.source }, `peak ${flops(device.peak_flops.value)}/s`),
    device.run ? h("a", { href: link(["runs", device.run]) }, userText(device.run)) : h("span.muted", {}, "free"));
}

function meter(label, used, total) {
  const part = Math.max(0, Math.min(1, used / total || 0));
  return h("span.meter", {
    role: "meter", "aria-label": label, "aria-valuemin": 0, "aria-valuemax": 100, "aria-valuenow": Math.round(part * 100),
    dataset: { full: part > 0.95 ? "yes" : "no" },
  }, h("span", { style: { transform: `scaleX(${part})` } }));
}
