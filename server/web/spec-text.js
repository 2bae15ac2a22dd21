/** A spec as text to take along: a curl line, or YAML for `traind run`. Pure. */

export function asCurl(spec) {
  const body = JSON.stringify(spec).replaceAll("'", "'\\''");
  return `curl -X POST ${location.origin}/v1/runs -H 'Content-Type: application/json' -d '${body}'`;
}

export function asYaml(spec, indent = "") {
  return Object.entries(spec).map(([key, value]) => {
    if (value && typeof value === "object" && !Array.isArray(value) && Object.keys(value).length) return `${indent}${key}:\n${asYaml(value, `${indent}  `)}`;
    return `${indent}${key}: ${JSON.stringify(value)}\n`; // JSON is YAML
  }).join("");
}
