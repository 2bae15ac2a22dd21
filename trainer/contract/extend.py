"""Extend preview: the next phase, its joint, its cost, and the alternatives.

The same functions compute the preview (`?dry_run=true`, POST /v1/plan, `traind extend --preview`)
and the phase row that the trainer follows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

from trainer.contract import units
from trainer.contract.plan.answer import Eta
from trainer.contract.schedule import (
    DecayShape,
    ExtendSchedule,
    PhaseMode,
    PhaseSchedule,
    curve,
    extend_schedule,
    lr_multiplier,
    muon_momentum,
    weight_decay_multiplier,
)
from trainer.contract.spec import MAX_STEPS
from trainer.contract.strict_types import of_their_kind

JUMP = 1.5  # a learning rate that changes by more than this factor in one step gives a warning


# How the length of an extend is given, as forms name it.
EXTEND_LENGTHS = {"to_step": "to step", "add_steps": "by steps", "add_tokens": "by tokens"}


class ExtendRequest(BaseModel):
    """Request body of POST /v1/runs/{id}/extend."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)
    _kinds = of_their_kind

    to_step: Annotated[int, Field(ge=1, le=MAX_STEPS)] | None = None
    """Step at which the new phase ends."""
    add_steps: Annotated[int, Field(ge=1, le=MAX_STEPS)] | None = None
    """Steps to add."""
    add_tokens: Annotated[int, Field(ge=1, le=10**15)] | None = None
    """Tokens to add, rounded to whole steps."""
    at: Literal["end", "now"] = "end"
    """end: when the current phase ends; now: at its next step boundary."""
    from_checkpoint: str | None = Field(default=None, max_length=128)
    name: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    """Name of the new phase."""
    start: bool | None = None
    """Whether to queue the run; null keeps a paused run paused."""
    schedule: ExtendSchedule = ExtendSchedule()
    """How the schedule continues."""

    @model_validator(mode="after")
    def _exactly_one(self) -> ExtendRequest:
        given = [k for k in EXTEND_LENGTHS if getattr(self, k) is not None]
        if len(given) != 1:
            names = ", ".join(given) if given else "none"
            raise ValueError(f"give exactly one of {', '.join(EXTEND_LENGTHS)} (given: {names})")
        if self.at == "now" and self.from_checkpoint:
            raise ValueError("at 'now' continues from the current step: leave from_checkpoint out")
        return self

    def end_step(self, present_end: int, batch_tokens: int) -> int:
        """Last step of the extended run. Raises ValueError if add_tokens is less than one step."""
        if self.to_step is not None:
            return self.to_step
        if self.add_steps is not None:
            return present_end + self.add_steps
        steps = (self.add_tokens or 0) // batch_tokens
        if steps < 1:
            raise ValueError(f"add_tokens is less than one step of {batch_tokens:,} tokens")
        return present_end + steps


class Joint(BaseModel):
    """Schedule values [before, after] the joint, the first step of the new phase.

    lr_multiplier: of the planned peak. weight_decay: the value Muon applies, as in the history.
    """

    step: int
    """First step of the new phase."""
    lr_multiplier: tuple[float, float]
    """Learning rate before and after the joint, as multiples of the peak."""
    weight_decay: tuple[float, float]
    """Muon's weight decay before and after the joint, as applied."""
    momentum: tuple[float, float]
    """Muon's momentum before and after the joint."""


class CurvePoint(BaseModel):
    """One point of a schedule's curve; units as in Joint."""

    step: int
    """Step of the point."""
    lr_multiplier: float
    momentum: float
    weight_decay: float


class Alternative(BaseModel):
    """Preview of another mode with the same joint and end."""

    mode: PhaseMode
    joint: Joint
    sentence: str
    """One-sentence summary."""


class ExtendPreview(BaseModel):
    """The answer to an extend: the new phase, its curve, the joint, its cost.

    eta: time of the new phase's steps in seconds, at the measured rate of the run or its device.
    """

    start_step: int
    end_step: int
    tokens: int
    flops: float
    schedule: PhaseSchedule
    joint: Joint
    curve: list[CurvePoint]
    """The new schedule, at about 200 points."""
    present_curve: list[CurvePoint]
    """The schedule followed so far."""
    discarded_steps: int
    warmdown_start: int
    alternatives: list[Alternative]
    """What the other modes would do at the same joint."""
    warnings: list[str]
    eta: Eta | None = None


def preview(
    ask: ExtendRequest,
    phases: list[PhaseSchedule],
    *,
    joint_step: int,
    reached_step: int,
    end_step: int,
    batch_tokens: int,
    flops_per_token: float,
    warmup_steps: int,
    warmdown_ratio: float,
    peak_weight_decay: float,
    points: int = 200,
) -> ExtendPreview:
    """The phase `[joint_step, end_step)` after `phases` (schedules of the lineage, in order).

    joint_step: first step of the new phase; reached_step: last step of the lineage so far:
    reached_step - joint_step steps are discarded. peak_weight_decay: Muon's, as scaled by the
    plan. Raises ValueError when end_step is not beyond.
    """
    if end_step <= joint_step:
        raise ValueError(f"the new end {end_step:,} is not beyond step {joint_step:,}")
    before = schedule_at(phases, joint_step)

    def planned(mode: PhaseMode) -> PhaseSchedule:
        changed = ask.schedule if mode == ask.schedule.mode else ExtendSchedule(mode=mode)
        return extend_schedule(
            before, joint_step, end_step, changed,
            warmup_steps=warmup_steps, warmdown_ratio=warmdown_ratio,
        )  # fmt: skip

    after = planned(ask.schedule.mode)
    joint = joint_between(before, after, joint_step, peak_weight_decay)
    tokens = (end_step - joint_step) * batch_tokens
    return ExtendPreview(
        start_step=joint_step,
        end_step=end_step,
        tokens=tokens,
        flops=tokens * flops_per_token,
        schedule=after,
        joint=joint,
        curve=_points(after, joint_step, end_step, points, peak_weight_decay),
        present_curve=_chain(phases, points, peak_weight_decay),
        discarded_steps=max(0, reached_step - joint_step),
        warmdown_start=after.warmdown_start,
        alternatives=[
            _alternative(mode, before, planned(mode), joint_step, peak_weight_decay)
            for mode in get_args(PhaseMode)
            if mode != ask.schedule.mode
        ],
        warnings=_warnings(
            before, after, joint, max(0, reached_step - joint_step), peak_weight_decay
        ),
    )  # fmt: skip


def schedule_at(phases: list[PhaseSchedule], step: int) -> PhaseSchedule:
    """The schedule that leads up to `step`: the last phase that begins before it."""
    earlier = [s for s in phases if s.start_step < step] or phases[:1]
    return earlier[-1]


def joint_between(
    before: PhaseSchedule, after: PhaseSchedule, step: int, peak_weight_decay: float
) -> Joint:
    """Schedule values on both sides of a joint at `step`."""

    def pair(of: Callable[[PhaseSchedule, int], float]) -> tuple[float, float]:
        return of(before, step), of(after, step)

    return Joint(
        step=step,
        lr_multiplier=pair(lr_multiplier),
        weight_decay=pair(lambda s, at: peak_weight_decay * weight_decay_multiplier(s, at)),
        momentum=pair(muon_momentum),
    )


def _points(
    schedule: PhaseSchedule, start: int, end: int, count: int, peak: float
) -> list[CurvePoint]:
    return [
        CurvePoint(step=s, lr_multiplier=lr, momentum=m, weight_decay=peak * wd)
        for s, lr, m, wd in curve(schedule, start, end, count)
    ]


def _chain(phases: list[PhaseSchedule], count: int, peak: float) -> list[CurvePoint]:
    """The curve actually followed: each phase up to the start of the next."""
    ends = [s.start_step for s in phases[1:]] + [s.end_step for s in phases[-1:]]
    return [
        point
        for schedule, end in zip(phases, ends, strict=True)
        for point in _points(schedule, schedule.start_step, end, count, peak)
    ]


def _alternative(
    mode: PhaseMode, before: PhaseSchedule, after: PhaseSchedule, step: int, peak: float
) -> Alternative:
    joint = joint_between(before, after, step, peak)
    lr_end = lr_multiplier(after, after.end_step)
    low, high = joint.lr_multiplier
    return Alternative(
        mode=mode,
        joint=joint,
        sentence=f"{mode}: learning rate {units.significant(low)} -> {units.significant(high)} "
        f"of its peak at the joint, {units.significant(lr_end)} at step {after.end_step:,}",
    )


def _warnings(
    before: PhaseSchedule,
    after: PhaseSchedule,
    joint: Joint,
    discarded: int,
    peak_weight_decay: float,
) -> list[str]:
    found = []
    low, high = joint.lr_multiplier
    if low > 0 and high / low > JUMP:
        found.append(
            f"LR × {high / low:.1f} in one step at step {joint.step:,} ({units.significant(low)} "
            f"-> {units.significant(high)} of "
            "the peak); rewarm_steps ramps it"
        )
    if after.mode == "replan" and after.rewarm_steps:
        curve_lr = lr_multiplier(after.model_copy(update={"rewarm_steps": 0}), joint.step)
        if low > 0 and curve_lr / low > JUMP:
            found.append(
                f"The new schedule is at {units.percent(curve_lr)} of peak at step {joint.step:,}, "
                f"{curve_lr / low:.1f} × today's rate; it is ramped in over "
                f"{after.rewarm_steps:,} steps (rewarm_steps: 0 would jump in one)"
            )
    if after.mode == "replan" and joint.step > after.warmdown_start:
        found.append(
            f"The new schedule's warmdown starts at step {after.warmdown_start:,}: step "
            f"{joint.step:,} is already inside it"
        )
    wd_before, wd_after = (value / (peak_weight_decay or 1.0) for value in joint.weight_decay)
    if abs(wd_after - wd_before) > 0.02:
        found.append(
            f"Weight decay jumps from {units.percent(wd_before)} to {units.percent(wd_after)} of "
            "its "
            "peak, because it is scheduled over the whole run"
        )
    if discarded:
        found.append(f"{discarded:,} steps after step {joint.step:,} are superseded")
    return found


__all__ = ["DecayShape", "ExtendPreview", "ExtendRequest", "Joint", "preview", "schedule_at"]
