/** What two or more specs say differently: {"optimizer.matrix_lr": [0.02, 0.03]}. Pure. */

const NEVER = /^(name|title|start|metadata|notify)(\.|$)/;

/** @param {any[]} specs @returns {[string, any[]][]} path, the value of each */
export function differences(specs) {
  const flat = specs.map((spec) => flattened(spec));
  const keys = [...new Set(flat.flatMap((one) => [...one.keys()]))];
  return keys
    .map((key) => [key, flat.map((one) => one.get(key))])
    .filter(([key, values]) => !NEVER.test(key) && values.some((v) => JSON.stringify(v) !== JSON.stringify(values[0])));
}

function flattened(value, prefix = "", found = new Map()) {
  for (const [key, inner] of Object.entries(value ?? {})) {
    const path = prefix ? `${prefix}.${key}` : key;
    if (inner && typeof inner === "object" && !Array.isArray(inner)) flattened(inner, path, found);
    else found.set(path, inner);
  }
  return found;
}
