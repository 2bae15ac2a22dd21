/** Exponential moving average, debiased: the first values are not drawn towards zero (Adam's rule). */

/**
 * @param {(number|null)[]} values
 * @param {number} weight of the past, 0 (as it is) to below 1
 * @returns {(number|null)[]} null where the value is
 */
export function smooth(values, weight) {
  if (!(weight > 0)) return values;
  let mean = 0;
  let seen = 0;
  return values.map((value) => {
    if (value === null || value === undefined || !Number.isFinite(value)) return null;
    mean = weight * mean + (1 - weight) * value;
    seen += 1;
    return mean / (1 - weight ** seen);
  });
}
