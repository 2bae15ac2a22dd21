"""Schedules: pure functions of (phase schedule, step). Nothing about them is saved in a checkpoint.

A `PhaseSchedule` is the immutable curve of one phase. The first phase of a run and every `replan`
follow nanochat's curve over the whole horizon (docs/recipe.md, Schedule); `hold`, `rewarm` and
`decay` leave that curve at the joint. Learning rates and weight decays are multiples of the planned
peak; momentum is absolute.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from trainer.contract.strict_types import of_their_kind

MOMENTUM_START = 0.85
MOMENTUM_PEAK = 0.97
MOMENTUM_END = 0.90
MOMENTUM_WARMUP_STEPS = 400

PhaseMode = Literal["replan", "hold", "rewarm", "decay"]
Mode = Literal["initial", PhaseMode]
DecayShape = Literal["linear", "cosine"]


class ExtendSchedule(BaseModel):
    """Schedule settings of an extend. `None` takes the mode's default."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)
    _kinds = of_their_kind

    mode: PhaseMode = "replan"
    rewarm_steps: Annotated[int, Field(ge=0, le=10**9)] | None = None
    peak_frac: Annotated[float, Field(ge=1e-6, le=10)] | None = None
    decay_ratio: Annotated[float, Field(ge=0, le=1)] | None = None
    """Share of the phase over which it decays."""
    final_lr_frac: Annotated[float, Field(ge=0, le=1)] | None = None
    warmdown_ratio: Annotated[float, Field(ge=0, le=1)] | None = None
    """Share of the horizon over which the learning rate decays."""
    shape: DecayShape | None = None
    """Shape of the decay; null keeps that of the run."""
    weight_decay: Literal["curve", "keep"] = "curve"
    """curve follows the new schedule; keep stays where it was."""


@dataclass(frozen=True)
class ExtendMode:
    """A way to continue the schedule. fields: those of ExtendSchedule that shape its curve."""

    mode: PhaseMode
    description: str
    fields: tuple[str, ...]


EXTEND_MODES = (
    ExtendMode(
        "replan",
        "Recomputes the whole curve over the longer horizon.",
        ("rewarm_steps", "warmdown_ratio", "shape", "final_lr_frac", "weight_decay"),
    ),
    ExtendMode("hold", "Keeps the current learning rate.", ("weight_decay",)),
    ExtendMode(
        "rewarm",
        "Warms up again, stays there, then decays.",
        ("peak_frac", "rewarm_steps", "decay_ratio", "shape", "final_lr_frac", "weight_decay"),
    ),
    ExtendMode(
        "decay",
        "Anneals from here to the final learning rate.",
        ("decay_ratio", "shape", "final_lr_frac", "weight_decay"),
    ),
)


class PhaseSchedule(BaseModel):
    """The curve of one phase over `[start_step, end_step)`; `end_step` is also its horizon N.

    joint_lr, joint_weight_decay: multipliers just before the joint, taken from the earlier phase.
    rewarm_steps: length of the ramp from joint_lr. decay_steps: the phase's own decay (hold: 0).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    mode: Mode = "initial"
    start_step: int = 0
    end_step: int
    warmup_steps: int
    """Steps of the linear warmup."""
    warmdown_steps: int
    """Steps of the decay at the end."""
    shape: DecayShape = "linear"
    """Shape of the decay."""
    final_lr_frac: float = 0.05
    joint_lr: float = 0.0
    """Learning rate at the joint, as a fraction of the peak."""
    joint_weight_decay: float = 1.0
    """Weight decay at the joint, as a fraction of the peak."""
    rewarm_steps: int = 0
    peak_frac: float = 1.0
    decay_steps: int = 0
    """Steps of the phase's own decay."""
    keep_weight_decay: bool = False
    """Whether weight decay stays at the joint's value."""

    @property
    def warmdown_start(self) -> int:
        """First step of the final decay of this phase; its end step if it has none."""
        if self.mode in ("initial", "replan"):
            return self.end_step - self.warmdown_steps
        return self.end_step - self.decay_steps


def initial_schedule(
    horizon_steps: int,
    warmup_steps: int,
    warmdown_ratio: float,
    shape: DecayShape,
    final_lr_frac: float,
) -> PhaseSchedule:
    """nanochat's curve over `horizon_steps` (docs/recipe.md, Schedule; rounds half to even)."""
    return PhaseSchedule(
        mode="initial",
        end_step=horizon_steps,
        warmup_steps=warmup_steps,
        warmdown_steps=round(warmdown_ratio * horizon_steps),
        shape=shape,
        final_lr_frac=final_lr_frac,
    )


def extend_schedule(
    before: PhaseSchedule,
    joint_step: int,
    end_step: int,
    ask: ExtendSchedule,
    *,
    warmup_steps: int,
    warmdown_ratio: float,
) -> PhaseSchedule:
    """The schedule of a new phase `[joint_step, end_step)` that continues `before`.

    warmup_steps, warmdown_ratio: the run's own (spec), used where `ask` has None.
    """
    length = end_step - joint_step
    ratio = warmdown_ratio if ask.warmdown_ratio is None else ask.warmdown_ratio
    rewarm = warmup_steps if ask.rewarm_steps is None else ask.rewarm_steps
    decay_ratio = {"hold": 0.0, "decay": 1.0}.get(ask.mode, ratio)
    if ask.decay_ratio is not None and ask.mode != "hold":
        decay_ratio = ask.decay_ratio
    decay_steps = round(decay_ratio * length)
    if ask.mode == "rewarm":
        decay_steps = min(decay_steps, max(0, length - rewarm))
    return PhaseSchedule(
        mode=ask.mode,
        start_step=joint_step,
        end_step=end_step,
        warmup_steps=warmup_steps,
        warmdown_steps=round(ratio * end_step),
        shape=ask.shape or before.shape,
        final_lr_frac=before.final_lr_frac if ask.final_lr_frac is None else ask.final_lr_frac,
        joint_lr=lr_multiplier(before, joint_step),
        joint_weight_decay=weight_decay_multiplier(before, joint_step),
        rewarm_steps=min(rewarm, length) if ask.mode in ("replan", "rewarm") else 0,
        peak_frac=1.0 if ask.peak_frac is None else ask.peak_frac,
        decay_steps=decay_steps,
        keep_weight_decay=ask.weight_decay == "keep",
    )


def lr_multiplier(schedule: PhaseSchedule, step: int) -> float:
    """Learning rate as a multiple of the planned peak, at `step` (before the update of that step).

    At the phase's end it is the final value of the curve, from which a joint starts.
    """
    if schedule.mode in ("initial", "replan"):
        return _replanned_lr(schedule, step)
    if schedule.mode == "hold":
        return schedule.joint_lr
    start, end = schedule.start_step, schedule.end_step
    plateau = schedule.peak_frac if schedule.mode == "rewarm" else schedule.joint_lr
    if step < start + schedule.rewarm_steps:
        return _ramp(schedule.joint_lr, plateau, step - start, schedule.rewarm_steps)
    if schedule.decay_steps and step >= end - schedule.decay_steps:
        remaining = max(0.0, (end - step) / schedule.decay_steps)
        return _anneal(plateau, min(plateau, schedule.final_lr_frac), remaining, schedule.shape)
    return plateau


def muon_momentum(schedule: PhaseSchedule, step: int) -> float:
    """Muon's momentum: 0.85 to 0.97 over 400 steps, then 0.97, then down to 0.90 over the decay."""
    if step < MOMENTUM_WARMUP_STEPS:
        frac = step / MOMENTUM_WARMUP_STEPS
        return (1 - frac) * MOMENTUM_START + frac * MOMENTUM_PEAK
    decay = schedule.end_step - schedule.warmdown_start
    if decay and step >= schedule.warmdown_start:
        progress = min(1.0, (step - schedule.warmdown_start) / decay)
        return MOMENTUM_PEAK * (1 - progress) + MOMENTUM_END * progress
    return MOMENTUM_PEAK


def weight_decay_multiplier(schedule: PhaseSchedule, step: int) -> float:
    """Muon's weight decay as a multiple of the scaled value: half a cosine over the horizon."""
    if schedule.keep_weight_decay:
        return schedule.joint_weight_decay
    return 0.5 * (1 + math.cos(math.pi * min(step, schedule.end_step) / schedule.end_step))


def curve(
    schedule: PhaseSchedule, from_step: int, to_step: int, max_points: int = 200
) -> list[tuple[int, float, float, float]]:
    """(step, LR multiplier, momentum, weight-decay multiplier) at up to `max_points` steps."""
    span = max(1, to_step - from_step)
    count = min(max_points, span + 1)
    steps = sorted({from_step + span * i // max(1, count - 1) for i in range(count)})
    return [
        (
            s,
            lr_multiplier(schedule, s),
            muon_momentum(schedule, s),
            weight_decay_multiplier(schedule, s),
        )
        for s in steps
    ]


def _replanned_lr(schedule: PhaseSchedule, step: int) -> float:
    target = _base_lr(schedule, step)
    since = step - schedule.start_step
    if schedule.mode == "replan" and 0 <= since < schedule.rewarm_steps:
        return _ramp(schedule.joint_lr, target, since, schedule.rewarm_steps)
    return target


def _base_lr(schedule: PhaseSchedule, step: int) -> float:
    if step < schedule.warmup_steps:
        return (step + 1) / schedule.warmup_steps
    if step < schedule.warmdown_start or schedule.warmdown_steps == 0:
        return 1.0
    remaining = max(0.0, (schedule.end_step - step) / schedule.warmdown_steps)
    return _anneal(1.0, schedule.final_lr_frac, remaining, schedule.shape)


def _ramp(low: float, high: float, since: int, length: int) -> float:
    return low + (high - low) * (since + 1) / length


def _anneal(high: float, low: float, remaining: float, shape: DecayShape) -> float:
    """Interpolate from `high` (remaining 1) to `low` (remaining 0)."""
    if shape == "linear":
        return remaining * high + (1 - remaining) * low
    return low + (high - low) * 0.5 * (1 + math.cos(math.pi * (1 - remaining)))
