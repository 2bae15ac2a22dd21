/**
 * The planned curves: trainer/contract/schedule.py said again, value for value.
 * tests/e2e/test_web_modules.py holds the two against each other on random schedules.
 *
 * @typedef {Object} PhaseSchedule
 * @property {"initial"|"replan"|"hold"|"rewarm"|"decay"} mode
 * @property {number} start_step
 * @property {number} end_step also the horizon
 * @property {number} warmup_steps
 * @property {number} warmdown_steps
 * @property {"linear"|"cosine"} shape
 * @property {number} final_lr_frac
 * @property {number} joint_lr
 * @property {number} joint_weight_decay
 * @property {number} rewarm_steps
 * @property {number} peak_frac
 * @property {number} decay_steps
 * @property {boolean} keep_weight_decay
 *
 * @typedef {{step: number, lr_multiplier: number, momentum: number, weight_decay: number}} CurvePoint
 */

const MOMENTUM_START = 0.85;
const MOMENTUM_PEAK = 0.97;
const MOMENTUM_END = 0.9;
const MOMENTUM_WARMUP_STEPS = 400;

/** The curve really followed: each phase up to where the next one begins. @returns {CurvePoint[]} */
export function chain(schedules, fromStep = 0, toStep = Infinity, maxPoints = 300) {
  return schedules.flatMap((schedule, i) => {
    const from = Math.max(fromStep, schedule.start_step);
    const to = Math.min(toStep, schedules[i + 1]?.start_step ?? schedule.end_step);
    return to > from ? curve(schedule, from, to, maxPoints) : [];
  });
}

/** At up to `maxPoints` steps of [fromStep, toStep], both included. @returns {CurvePoint[]} */
export function curve(schedule, fromStep, toStep, maxPoints = 200) {
  const span = Math.max(1, toStep - fromStep);
  const count = Math.min(maxPoints, span + 1);
  const steps = new Set();
  for (let i = 0; i < count; i++) {
    steps.add(fromStep + Math.floor((span * i) / Math.max(1, count - 1)));
  }
  return [...steps].sort((a, b) => a - b).map((step) => ({
    step,
    lr_multiplier: lrMultiplier(schedule, step),
    momentum: muonMomentum(schedule, step),
    weight_decay: weightDecayMultiplier(schedule, step),
  }));
}

/** The first step of the decay this phase ends with. */
export function warmdownStart(schedule) {
  const replanned = schedule.mode === "initial" || schedule.mode === "replan";
  return schedule.end_step - (replanned ? schedule.warmdown_steps : schedule.decay_steps);
}

/** Learning rate as a multiple of the planned peak. */
export function lrMultiplier(schedule, step) {
  if (schedule.mode === "initial" || schedule.mode === "replan") return replannedLr(schedule, step);
  if (schedule.mode === "hold") return schedule.joint_lr;
  const { start_step: start, end_step: end } = schedule;
  const plateau = schedule.mode === "rewarm" ? schedule.peak_frac : schedule.joint_lr;
  if (step < start + schedule.rewarm_steps) {
    return ramp(schedule.joint_lr, plateau, step - start, schedule.rewarm_steps);
  }
  if (schedule.decay_steps && step >= end - schedule.decay_steps) {
    const remaining = Math.max(0, (end - step) / schedule.decay_steps);
    return anneal(plateau, Math.min(plateau, schedule.final_lr_frac), remaining, schedule.shape);
  }
  return plateau;
}

/** Muon's momentum: 0.85 to 0.97 over 400 steps, 0.97, and to 0.90 over the decay. */
export function muonMomentum(schedule, step) {
  if (step < MOMENTUM_WARMUP_STEPS) {
    const frac = step / MOMENTUM_WARMUP_STEPS;
    return (1 - frac) * MOMENTUM_START + frac * MOMENTUM_PEAK;
  }
  const start = warmdownStart(schedule);
  const decay = schedule.end_step - start;
  if (decay && step >= start) {
    const progress = Math.min(1, (step - start) / decay);
    return MOMENTUM_PEAK * (1 - progress) + MOMENTUM_END * progress;
  }
  return MOMENTUM_PEAK;
}

/** Muon's weight decay as a multiple of the scaled one. */
export function weightDecayMultiplier(schedule, step) {
  if (schedule.keep_weight_decay) return schedule.joint_weight_decay;
  return 0.5 * (1 + Math.cos((Math.PI * Math.min(step, schedule.end_step)) / schedule.end_step));
}

function replannedLr(schedule, step) {
  const target = baseLr(schedule, step);
  const since = step - schedule.start_step;
  if (schedule.mode === "replan" && since >= 0 && since < schedule.rewarm_steps) {
    return ramp(schedule.joint_lr, target, since, schedule.rewarm_steps);
  }
  return target;
}

function baseLr(schedule, step) {
  if (step < schedule.warmup_steps) return (step + 1) / schedule.warmup_steps;
  if (step < warmdownStart(schedule) || schedule.warmdown_steps === 0) return 1;
  const remaining = Math.max(0, (schedule.end_step - step) / schedule.warmdown_steps);
  return anneal(1, schedule.final_lr_frac, remaining, schedule.shape);
}

function ramp(low, high, since, length) {
  return low + ((high - low) * (since + 1)) / length;
}

function anneal(high, low, remaining, shape) {
  if (shape === "linear") return remaining * high + (1 - remaining) * low;
  return low + (high - low) * 0.5 * (1 + Math.cos(Math.PI * (1 - remaining)));
}
