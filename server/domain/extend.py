"""Extend: resolves joint and end, previews the phase, appends its row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from server.database import tables
from server.domain import checkpoint_lookup, commands, events, lineage, states
from server.domain.states import Desired, State
from server.errors import Conflict, IllegalMove, Invalid
from trainer.contract.commands import EndPhase
from trainer.contract.extend import ExtendPreview, ExtendRequest, preview
from trainer.contract.plan import Plan
from trainer.contract.reasons import Reason
from trainer.contract.rundir import DataDir
from trainer.contract.schedule import PhaseSchedule
from trainer.contract.spec import MAX_STEPS, RunSpec

# States in which a trainer may be making steps, so that only it knows the step of "now".
_STEPPING = frozenset({State.starting, State.running, State.recovering, State.pausing})


@dataclass(frozen=True)
class ExtendOutcome:
    """Result. preview: the new phase, None for a no-op. changed: whether the run was changed."""

    preview: ExtendPreview | None
    changed: bool


@dataclass(frozen=True)
class _Joint:
    step: int
    reached: int
    checkpoint: tables.Checkpoint | None = None


def extend(
    session: Session, run: tables.Run, ask: ExtendRequest, now: float, *, dry_run: bool = False
) -> ExtendOutcome:
    """Append a phase, or ask a stepping trainer to end its own first (`at: now`).

    Raises Invalid for an end that is not beyond the joint or a missing checkpoint, IllegalMove
    where the state forbids it, Conflict while another extend is pending.
    """
    state = states.require(run, "extend")
    end = _end_step(run, ask)
    if _is_repeated(session, run, ask, end):
        return ExtendOutcome(None, _start_if_asked(session, run, ask, now, dry_run))
    if run.pending_extend is not None:
        raise Conflict(
            f"run {run.name} is already ending its phase for another extend",
            hint="Wait until the new phase has begun, then extend again.",
            state=state,
        )
    joint = _joint(session, run, ask, state)
    shown = _preview(session, run, ask, joint, end)
    if dry_run:
        return ExtendOutcome(shown, False)
    if ask.at == "now" and state in _STEPPING:
        said = ask.model_dump(mode="json", exclude_unset=True, exclude={"add_steps", "add_tokens"})
        run.pending_extend = {**said, "to_step": end}
        commands.send(session, run, EndPhase(id=commands.new_id()), now)
        _record(session, run, now, f"the current phase ends at the next step: extend to {end:,}")
        return ExtendOutcome(shown, True)
    _append(session, run, ask, joint, shown, now)
    _start_after(session, run, ask, state, now)
    return ExtendOutcome(shown, True)


def apply_pending(session: Session, run: tables.Run, step: int, now: float) -> bool:
    """Append the phase of a pending extend `at: now`, at the step where the trainer ended."""
    if run.pending_extend is None:
        return False
    ask = ExtendRequest.model_validate(run.pending_extend)
    run.pending_extend = None
    end = _end_step(run, ask)
    if end <= step:
        _record(
            session, run, now, f"the extend to {end:,} is obsolete: step {step:,} has been trained"
        )
        return False
    joint = _Joint(step, step)
    _append(session, run, ask, joint, _preview(session, run, ask, joint, end), now)
    return True


# --- where ---------------------------------------------------------------------------------------


def _end_step(run: tables.Run, ask: ExtendRequest) -> int:
    try:
        end = ask.end_step(run.end_step, run.batch_tokens)
    except ValueError as error:
        raise Invalid(str(error), errors=[_at("add_tokens", str(error))]) from error
    if end > MAX_STEPS:
        raise Invalid(f"a run has at most {MAX_STEPS:,} steps", errors=[_at(_key(ask), "too far")])
    return end


def _is_repeated(session: Session, run: tables.Run, ask: ExtendRequest, end: int) -> bool:
    """True if the request changes nothing: its end is already planned, or it repeats a request."""
    if ask.to_step is None:
        return False
    if ask.at == "end" and ask.from_checkpoint is None and run.pending_extend is None:
        return end == run.end_step
    said = _comparable(ask.model_dump(mode="json", exclude_unset=True))
    if run.pending_extend is not None:
        return said == _comparable(run.pending_extend)
    last = lineage.phases(session, run.id)[-1]
    return last.ask is not None and said == _comparable(last.ask)


def _comparable(ask: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in ask.items() if key not in ("start", "name")}


def _joint(session: Session, run: tables.Run, ask: ExtendRequest, state: State) -> _Joint:
    if ask.from_checkpoint is not None:
        if state not in states.SETTLED:
            raise IllegalMove(
                f"run {run.name} is {state}: a run with a trainer cannot go back to a checkpoint",
                hint="Pause it first, then extend from the checkpoint.",
                state=state,
                legal=sorted(states.VERBS[state]),
            )
        chosen = _checkpoint(session, run, ask.from_checkpoint)
        return _Joint(chosen.step, run.step, chosen)
    if ask.at == "end":
        return _Joint(run.end_step, run.end_step)
    if state in _STEPPING:
        return _Joint(run.step, run.step)
    newest = checkpoint_lookup.newest(session, run.id)
    return _Joint(newest.step if newest else 0, run.step, newest)


def _checkpoint(session: Session, run: tables.Run, asked: str) -> tables.Checkpoint:
    usable = checkpoint_lookup.usable(session, run.id)
    step = int(asked) if asked.isdecimal() else None
    found = (
        checkpoint_lookup.first(usable, name=asked)
        if step is None
        else checkpoint_lookup.first(usable, step=step)
    )
    if found is not None:
        return found
    there = ", ".join(c.name for c in usable[:10]) or "none"
    raise Invalid(
        f"run {run.name} has no usable checkpoint {asked!r} in its current lineage",
        hint=f"Usable, newest first: {there}.",
        errors=[_at("from_checkpoint", "not a checkpoint of the current lineage")],
    )


def _preview(
    session: Session, run: tables.Run, ask: ExtendRequest, joint: _Joint, end: int
) -> ExtendPreview:
    _check_end(run, ask, joint, end)
    spec, plan = RunSpec.model_validate(run.spec), Plan.model_validate(run.plan)
    phases = lineage.phases(session, run.id)
    shown = preview(
        ask,
        [PhaseSchedule.model_validate(p.schedule) for p in phases],
        joint_step=joint.step,
        reached_step=joint.reached,
        end_step=end,
        batch_tokens=run.batch_tokens,
        flops_per_token=plan.horizon.flops_per_token,
        warmup_steps=spec.schedule.warmup_steps,
        warmdown_ratio=spec.schedule.warmdown_ratio,
        peak_weight_decay=plan.hyperparameters.weight_decay,
    )
    replaced = [p for p in phases if p.start_step > joint.step and p.start_step >= joint.reached]
    if replaced:
        names = ", ".join(p.name for p in replaced)
        shown.warnings.append(f"planned phases that have not begun are replaced: {names}")
    if fresh := _fresh_moments(run, joint):
        shown.warnings.append(fresh)
    return shown


def _fresh_moments(run: tables.Run, joint: _Joint) -> str | None:
    """Warning for a joint at weights that were imported without their optimizer state."""
    imported = (run.totals or {}).get("imported", {})
    if not imported.get("weights_only") or joint.step != imported.get("step"):
        return None
    return (
        "the weights were imported without their optimizer: its moments start at zero, so warm up "
        "again (schedule.rewarm_steps)"
    )


def _check_end(run: tables.Run, ask: ExtendRequest, joint: _Joint, end: int) -> None:
    if ask.at == "end" and joint.checkpoint is None and end <= run.end_step:
        where = f"at or below the current step {run.step:,}" if end <= run.step else "earlier"
        raise Invalid(
            f"run {run.name} is planned to step {run.end_step:,}; step {end:,} is {where}",
            hint='To shorten the plan from the current step on, use "at": "now".',
            errors=[_at(_key(ask), f"must be above {run.end_step}")],
        )
    floor = joint.step if joint.checkpoint is not None else max(joint.step, run.step)
    if end <= floor:
        raise Invalid(
            f"the new end, step {end:,}, is not beyond step {floor:,}",
            errors=[_at(_key(ask), f"must be above {floor}")],
        )


def _key(ask: ExtendRequest) -> str:
    return next(k for k in ("to_step", "add_steps", "add_tokens") if getattr(ask, k) is not None)


def _at(key: str, detail: str) -> dict[str, str]:
    return {"pointer": f"/{key}", "detail": detail}


# --- doing it ------------------------------------------------------------------------------------


def _append(
    session: Session,
    run: tables.Run,
    ask: ExtendRequest,
    joint: _Joint,
    shown: ExtendPreview,
    now: float,
) -> None:
    """Add the phase row; a joint before the end cuts the phases and steps beyond it."""
    for phase in lineage.phases(session, run.id):
        if lineage.phase_end(phase) > joint.step:
            phase.lineage_limit = max(joint.step, phase.start_step)
            if phase.ended_at_step is None and phase.start_step < joint.step:
                phase.ended_at_step = joint.step
                phase.ended_at = max(now, phase.started_at or now)
    if joint.step < run.step:
        lineage.supersede(session, run, joint.step, next_number(session, run.id))
    index = 1 + (
        session.scalar(select(func.max(tables.Phase.index)).where(tables.Phase.run_id == run.id))
        or 0
    )
    session.add(
        tables.Phase(
            run_id=run.id,
            index=index,
            name=ask.name or f"phase-{index}",
            start_step=shown.start_step,
            end_step=shown.end_step,
            schedule=shown.schedule.model_dump(mode="json"),
            ask=ask.model_dump(mode="json", exclude_unset=True),
            preview=_kept(shown),
            from_checkpoint=joint.checkpoint.name if joint.checkpoint else None,
            created_at=now,
        )
    )
    run.end_step = shown.end_step
    run.version += 1
    session.flush()
    mode, start, end = shown.schedule.mode, shown.start_step, shown.end_step
    _record(session, run, now, f"extended from step {start:,} to {end:,} ({mode})")


def _kept(shown: ExtendPreview) -> dict[str, Any]:
    """The preview as stored: without curves, which follow from the schedules."""
    return shown.model_dump(mode="json", exclude={"curve", "present_curve", "eta"})


def next_number(session: Session, run_id: str) -> int:
    """The next attempt number, beyond every attempt in the rows and on the disk: a restored
    database may lack the latest attempts, and a number is never used twice."""
    attempt = tables.Attempt
    known = session.scalar(select(func.max(attempt.number)).where(attempt.run_id == run_id)) or 0
    paths: DataDir = session.info["paths"]
    return 1 + max(known, paths.run(run_id).highest_attempt())


def _start_after(
    session: Session, run: tables.Run, ask: ExtendRequest, state: State, now: float
) -> None:
    """Queue a settled run; created and paused runs wait for start or resume."""
    waits = state in (State.created, State.paused)
    if state not in states.SETTLED:
        return
    if ask.start if waits else ask.start is not False:
        run.desired_state = Desired.running
        states.move(session, run, State.queued, Reason.requested, now=now)
    elif state is State.completed:
        run.desired_state = Desired.paused
        states.move(session, run, State.paused, Reason.requested, "extended, not started", now=now)


def _start_if_asked(
    session: Session, run: tables.Run, ask: ExtendRequest, now: float, dry_run: bool
) -> bool:
    """Start the paused run if a repeated extend only adds `start: true`."""
    waiting = run.state in (State.created, State.paused)
    if dry_run or not (ask.start and waiting and run.step < run.end_step):
        return False
    run.desired_state = Desired.running
    states.move(session, run, State.queued, Reason.requested, now=now)
    return True


def _record(session: Session, run: tables.Run, now: float, message: str) -> None:
    events.record(session, "extend", message, run_id=run.id, step=run.step, now=now)
