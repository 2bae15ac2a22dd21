/**
 * How much compute a run saves: the FLOPs the baseline needs for the val bpb this run has reached,
 * over those this run took. By log-log interpolation of the baseline's curve, and only within it.
 *
 * @param {{flops: number, bpb: number}[]} baseline measured, in order of FLOPs
 * @param {{flops: number, bpb: number}} reached
 * @returns {number|null} 1.3: the baseline needs 1.3 times the compute; null: outside of its curve
 */
export function computeMultiplier(baseline, { flops, bpb }) {
  if (!(flops > 0) || !(bpb > 0)) return null;
  for (let i = 1; i < baseline.length; i++) {
    const [a, b] = [baseline[i - 1], baseline[i]];
    if (!(a.bpb >= bpb && b.bpb <= bpb) || a.bpb === b.bpb || !(a.flops > 0)) continue;
    const part = (Math.log(a.bpb) - Math.log(bpb)) / (Math.log(a.bpb) - Math.log(b.bpb));
    return Math.exp(Math.log(a.flops) + part * (Math.log(b.flops) - Math.log(a.flops))) / flops;
  }
  return null;
}

/** Val bpb over FLOPs, under the identity of the run's last measurement. @returns {{identity: string|null, points: {flops: number, bpb: number}[]}} */
export function qualityCurve({ detail, evaluations = [] }) {
  const own = evaluations.filter((e) => e.kind === "bpb" && !e.superseded).sort((a, b) => a.step - b.step);
  const identity = own.at(-1)?.identity ?? null;
  const perStep = detail.plan.batch.tokens * detail.plan.horizon.flops_per_token;
  const points = own.filter((e) => e.identity === identity).map((e) => ({ flops: e.step * perStep, bpb: e.value }));
  return { identity, points };
}
