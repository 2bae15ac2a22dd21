/** Numbers, times and sizes as a person reads them. Missing or non-finite values are a dash. */

export const NONE = "–";
const GROUPED = new Intl.NumberFormat("en-US", { maximumFractionDigits: 0 });
const SI = [[1e12, "T"], [1e9, "B"], [1e6, "M"], [1e3, "k"]];

const known = (x) => typeof x === "number" && Number.isFinite(x);

/** 130000 -> "130,000" */
export const integer = (x) => (known(x) ? GROUPED.format(x) : NONE);

/** Fixed digits: loss 4, val bpb 4, watts 0. */
export const fixed = (x, digits) => (known(x) ? x.toFixed(digits) : NONE);

export const loss = (x) => fixed(x, 4);
export const bpb = (x) => fixed(x, 4);

/** Significant digits with grouping: 0.3536, 55,700, 1.16e19. */
export function significant(x, digits = 4) {
  if (!known(x)) return NONE;
  const size = Math.abs(x);
  if (x !== 0 && (size < 1e-4 || size >= 1e15)) return exponent(x, Math.min(digits, 3));
  if (size >= 1000) return GROUPED.format(x);
  return String(Number(x.toPrecision(digits)));
}

/** 1.16e19 -> "1.16 × 10¹⁹" */
export function exponent(x, digits = 3) {
  if (!known(x)) return NONE;
  const [mantissa, power] = x.toExponential(digits - 1).split("e");
  return `${mantissa} × 10${[...String(Number(power))].map((c) => "⁰¹²³⁴⁵⁶⁷⁸⁹"[c] ?? "⁻").join("")}`;
}

/** 13107000000 -> "13.1 B" (a count: parameters, tokens) */
export function count(x, digits = 3) {
  if (!known(x)) return NONE;
  for (const [size, letter] of SI) {
    if (Math.abs(x) >= size) return `${Number((x / size).toPrecision(digits))} ${letter}`;
  }
  return GROUPED.format(x);
}

/** Decimal units: 793 MB, 1.2 GB. */
export function bytes(x, digits = 3) {
  if (!known(x)) return NONE;
  for (const [size, unit] of [[1e12, "TB"], [1e9, "GB"], [1e6, "MB"], [1e3, "kB"]]) {
    if (Math.abs(x) >= size) return `${Number((x / size).toPrecision(digits))} ${unit}`;
  }
  return `${Math.round(x)} B`;
}

const JOULES_PER_KWH = 3.6e6;

/** 2220000 joules -> "0.62 kWh" */
export const energy = (joules) => (known(joules) ? `${fixed(joules / JOULES_PER_KWH, 2)} kWh` : NONE);

export const percent = (x, digits = 0) => (known(x) ? `${(100 * x).toFixed(digits)} %` : NONE);

/** The share done, never rounded up to done: 99.99 % is "99.9 %". */
export function progress(x) {
  if (!known(x)) return NONE;
  if (x >= 1) return "100 %";
  return `${(Math.floor(x * 1000) / 10).toFixed(1)} %`;
}

/** 82800 -> "23 h 00 min"; 252 -> "4 min 12 s"; 0.118 -> "118 ms" */
export function duration(seconds) {
  if (!known(seconds)) return NONE;
  if (seconds < 0.9995) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 60) return `${Number(seconds.toPrecision(3))} s`;
  const s = Math.round(seconds);
  const pad = (n) => String(n).padStart(2, "0");
  if (s < 3600) return `${Math.floor(s / 60)} min ${pad(s % 60)} s`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${pad(Math.floor((s % 3600) / 60))} min`;
  return `${Math.floor(s / 86400)} d ${pad(Math.floor((s % 86400) / 3600))} h`;
}

/** unix seconds -> {date: "2026-11-21", time: "14:05", seconds: "09"}, in the time zone of the browser */
export function clock(unixSeconds) {
  const at = new Date(unixSeconds * 1000);
  const two = (n) => String(n).padStart(2, "0");
  return {
    date: `${at.getFullYear()}-${two(at.getMonth() + 1)}-${two(at.getDate())}`,
    time: `${two(at.getHours())}:${two(at.getMinutes())}`,
    seconds: two(at.getSeconds()),
  };
}

/** unix seconds -> "14:05" today, else "2026-11-21 14:05" */
export function when(unixSeconds, now = Date.now() / 1000) {
  if (!known(unixSeconds)) return NONE;
  const { date, time } = clock(unixSeconds);
  return date === clock(now).date ? time : `${date} ${time}`;
}

/** unix seconds -> "2026-11-21 14:05:09", for titles and tables of record */
export function exactly(unixSeconds) {
  if (!known(unixSeconds)) return NONE;
  const { date, time, seconds } = clock(unixSeconds);
  return `${date} ${time}:${seconds}`;
}

/** unix seconds -> "12 s ago", "3 h ago" */
export function ago(unixSeconds, now = Date.now() / 1000) {
  if (!known(unixSeconds)) return NONE;
  const s = Math.max(0, now - unixSeconds);
  if (s < 5) return "just now";
  if (s < 90) return `${Math.round(s)} s ago`;
  if (s < 5400) return `${Math.round(s / 60)} min ago`;
  if (s < 129600) return `${Math.round(s / 3600)} h ago`;
  return `${Math.round(s / 86400)} d ago`;
}

/**
 * "no space is left" -> "No space is left.": a cause as a sentence. What begins with a name of the
 * computer's (cuda:0, nvidia-smi, a path) keeps its letters.
 */
export function sentence(text) {
  const said = (text ?? "").trim();
  if (!said) return "";
  const begun = /^[a-z]+(?=[ ,]|: |$)/.test(said) ? said[0].toUpperCase() + said.slice(1) : said;
  return /[\p{L}\p{N})\]"'%]$/u.test(begun) ? `${begun}.` : begun;
}

/** "not_a_word" -> "not a word" */
export const words = (name) => (name ?? "").replaceAll("_", " ");
