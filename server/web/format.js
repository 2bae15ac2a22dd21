/**
 * Numbers, times and sizes as a person reads them. Missing or non-finite values are a dash.
 *
 * The only module that scales a number or chooses its unit; trainer/contract/units.py does the same
 * for the programs, and tests/contract/test_units.py holds the two to one table.
 */

export const NONE = "–";
const GROUPED = new Intl.NumberFormat("en-US", { maximumFractionDigits: 0 });
const MONEY = new Intl.NumberFormat("en-US", { minimumFractionDigits: 2, maximumFractionDigits: 2 });
const PREFIXES = [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]];
const COUNTS = [[1e12, "T"], [1e9, "B"], [1e6, "M"], [1e3, "k"]]; // B as in "7 B parameters"
const NEXT = 0.9995; // of a unit: 999,950 is 1 M and not 1,000 k

const known = (x) => typeof x === "number" && Number.isFinite(x);

/** 130000 -> "130,000" */
export const integer = (x) => (known(x) ? GROUPED.format(x) : NONE);

/** A loss or a learning rate: fixed decimals, or a power of ten if they would all be zeros. */
export function fixed(x, digits) {
  if (!known(x)) return NONE;
  return x !== 0 && Math.abs(x) < Math.min(0.01, 10 ** (1 - digits)) ? exponent(x) : x.toFixed(digits);
}

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
export const count = (x) => (known(x) ? scaled(x, COUNTS) ?? significant(x, 3) : NONE);

/** Decimal units: 793 MB, 1.25 GB. */
export const bytes = (x) => (known(x) ? `${scaled(x, PREFIXES) ?? `${Math.round(x)} `}B` : NONE);

function scaled(x, prefixes) {
  const found = prefixes.find(([size]) => Math.abs(x) >= size * NEXT);
  return found ? `${Number((x / found[0]).toPrecision(3))} ${found[1]}` : null;
}

/** "887 MFLOP", "58.3 TFLOP", "7.56 × 10¹⁸ FLOP" */
export function flops(x) {
  if (!known(x)) return NONE;
  if (x >= 1e17) return `${exponent(x)} FLOP`;
  return `${scaled(x, [[1e15, "P"], ...PREFIXES]) ?? `${Math.round(x)} `}FLOP`;
}

/** Tokens per second: "55,700 tok/s", "2.35 tok/s" */
export const rate = (x) => (known(x) ? `${Math.abs(x) >= 100 ? integer(x) : significant(x, 3)} tok/s` : NONE);

let joulesPerKwh = NaN;

/** Takes the size of a kilowatt-hour from the catalog. */
export const setJoulesPerKwh = (joules) => (joulesPerKwh = joules);

/** 2220000 joules -> "0.62 kWh" */
export const energy = (joules) => (known(joules) ? kwh(joules / joulesPerKwh) : NONE);

export const kwh = (x) => (known(x) ? `${MONEY.format(x)} kWh` : NONE);
export const watts = (x) => (known(x) ? `${GROUPED.format(x)} W` : NONE);
export const celsius = (x) => (known(x) ? `${x.toFixed(0)} °C` : NONE);

/** A sum of money, whose currency the settings do not name: "1,204.50" */
export const cost = (x) => (known(x) ? MONEY.format(x) : NONE);

export const percent = (x, digits = 0) => (known(x) ? `${(100 * x).toFixed(digits)} %` : NONE);

/** The share done, never rounded up to done: 99.99 % is "99.9 %". */
export function progress(x) {
  if (!known(x)) return NONE;
  if (x >= 1) return "100 %";
  return `${(Math.floor(x * 1000) / 10).toFixed(1)} %`;
}

/** In its two largest units: "4 d 6 h", "42 h 30 min", "4 min 12 s", "8.14 s", "118 ms" */
export function duration(seconds) {
  if (!known(seconds)) return NONE;
  if (seconds > 0 && seconds < 0.9995) return `${significant(seconds * 1000, 3)} ms`;
  if (seconds < 59.95) return `${Number(seconds.toPrecision(3))} s`;
  if (seconds < 3599.5) return two(seconds, 60, "min", "s");
  if (seconds < 48 * 3600 - 30) return two(seconds / 60, 60, "h", "min");
  return two(seconds / 3600, 24, "d", "h");
}

function two(x, base, large, small) {
  const whole = Math.round(x);
  const rest = whole % base;
  return `${Math.floor(whole / base)} ${large}${rest ? ` ${rest} ${small}` : ""}`;
}

/** A tick of a chart's axis, with as many decimals as the distance between two ticks needs. */
export const tick = (x, decimals) => x.toLocaleString("en-US", { minimumFractionDigits: decimals, maximumFractionDigits: decimals });

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
