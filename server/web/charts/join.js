/** Several series on one horizontal axis. */

/**
 * The union of the x of `series`, and each one's values laid on it (null where it has none).
 * @param {{x: number[], values: (number|null)[][]}[]} series each with one or more columns
 * @returns {{x: number[], columns: (number|null)[][][]}}
 */
export function join(series) {
  if (series.length === 1 || series.every((s) => sameX(s.x, series[0].x))) {
    return { x: series[0]?.x ?? [], columns: series.map((s) => s.values) };
  }
  const x = [...new Set(series.flatMap((s) => s.x))].sort((a, b) => a - b);
  const place = new Map(x.map((value, i) => [value, i]));
  const columns = series.map((s) =>
    s.values.map((values) => {
      const laid = new Array(x.length).fill(null);
      s.x.forEach((value, i) => (laid[place.get(value)] = values[i]));
      return laid;
    }));
  return { x, columns };
}

function sameX(a, b) {
  return a === b || (a.length === b.length && a.every((v, i) => v === b[i]));
}
