"""Checkpointing during training: when to save, what to report, what to remove."""

from __future__ import annotations

import errno
import sys
import time
from typing import Literal

from torch import Tensor

from trainer.checkpoint import fence, retention, store
from trainer.checkpoint.background_writer import SavedCheckpoint
from trainer.contract import commands, events, failpoint, holds, units
from trainer.contract.orders import AttemptOrder
from trainer.contract.spec import CheckpointSpec, EvaluateSpec, RecoverySpec
from trainer.runtime.peers import LostPeer
from trainer.train import rank_drift
from trainer.train.session import Session

Tensors = tuple[dict[str, Tensor], dict[str, Tensor]]
Why = Literal["cadence", "requested", "warmdown", "pause", "terminate", "end"]
WHYS: tuple[Why | None, ...] = (None, "warmdown", "cadence")  # reasons for a save at a boundary
RETRY_SECONDS = 2.0
MAX_IO_RETRIES = 3
FREE_MARGIN = 1.05


class CannotSave(Exception):
    """The last checkpoint of an attempt could not be written; the message gives the cause."""


def due(session: Session) -> Why | None:
    """Reason for a save at this boundary, or None. A cadence waits while a save is written."""
    if session.state.step >= session.order.end_step:
        return None
    if _at_warmdown(session):
        return "warmdown"
    return "cadence" if _cadence_due(session) and not session.saver.busy else None


def collect(session: Session) -> None:
    """Report the saves that finished in the background."""
    for saved in session.saver.collect():
        _finish(session, saved)


def drain(session: Session) -> None:
    """Wait for the save in flight and report it; a durable checkpoint is always reported."""
    for saved in session.saver.wait():
        _finish(session, saved)


def save_now(session: Session, why: Why, *, pinned: bool = False) -> None:
    """Start a save of the current step in the background. Waits for one in flight."""
    drain(session)
    if session.world.broadcast(_may_begin(session)):
        _begin(session, why, pinned, None, _tensors(session))


def _may_begin(session: Session) -> bool:
    return session.world.leads and not session.is_saved and _room(session)


def save_on_request(session: Session, command: commands.Save) -> None:
    """Start a save; answers the command when it is durable or has failed."""
    save_now(session, "requested", pinned=command.pin)
    if session.saver.busy:
        session.unanswered = command.id
    elif session.is_saved:
        _answer(session, command.id, None)
    else:
        _answer(session, command.id, "it could not be started: see the previous event")


def _answer(session: Session, command_id: str, failure: str | None) -> None:
    session.reporter.emit(
        events.CommandDone(
            command_id=command_id,
            outcome="failed" if failure else "done",
            message=failure or "",
        )
    )


def save_last(session: Session, why: Why) -> str:
    """Save the last checkpoint of an attempt; durable on return. Returns its name.

    It records the next step's loss if that can be computed. Waits while the disk is full; raises
    CannotSave if the disk keeps failing or the trainer gets a second signal to end.
    """
    drain(session)
    saved = session.world.broadcast(session.parent if session.is_saved else None)
    if saved:
        return saved
    session.reporter.emit(events.Stage(stage="saving"))
    next_loss = _next_loss_if_possible(session)
    tensors = _tensors(session)
    name = _write_last(session, why, next_loss, tensors) if session.world.leads else ""
    return session.world.broadcast(name)  # the others wait here, however long the disk is full


def _write_last(session: Session, why: Why, next_loss: float | None, tensors: Tensors) -> str:
    failures = 0
    while True:
        _begin(session, why, why == "end", next_loss, tensors)
        (saved,) = session.saver.wait()
        _finish(session, saved)
        if saved.path is not None:
            return saved.path.name
        if isinstance(saved.error, fence.Fenced):
            raise saved.error
        failures += not _is_full(saved.error)
        if failures >= MAX_IO_RETRIES:
            raise CannotSave(f"the last checkpoint could not be written: {saved.error}")
        _wait_a_little(session)


def _wait_a_little(session: Session) -> None:
    deadline = time.monotonic() + RETRY_SECONDS
    while time.monotonic() < deadline:
        if any(isinstance(c, commands.Cancel) for c in session.control.take()):
            raise CannotSave("cancelled while waiting for disk space for the last checkpoint")
        time.sleep(0.1)


def _tensors(session: Session) -> Tensors:
    """Tensors to save, collected from all ranks; only if their weights are equal."""
    rank_drift.check(session.world, session.model)
    return session.tensors()


def _begin(
    session: Session, why: Why, pinned: bool, next_loss: float | None, tensors: Tensors
) -> None:
    session.save_began = time.monotonic()
    if not session.world.leads:
        return
    session.check_compiler()  # before the manifest: an evaluation may have compiled since
    model, optimizer = tensors
    session.saver.begin(
        session.state.step,
        model,
        optimizer,
        session.state_dict(),
        session.manifest(why, pinned, next_loss),
        why,
    )
    if session.saver.pinning_refused and not session.told_of_pageable:
        session.told_of_pageable = True
        session.reporter.emit(_pageable(session))


def _pageable(session: Session) -> events.Notice:
    return events.Notice(
        level="warning",
        code="host_memory_not_pinned",
        message="a checkpoint is copied to host memory that is not pinned, and the step waits for "
        f"the copy: {session.saver.pinning_refused}. Raise the limit of locked memory (ulimit -l, "
        "or WSL's memory in .wslconfig)",
        step=session.state.step,
    )


def _next_loss_if_possible(session: Session) -> float | None:
    """The next step's loss, or None with a notice: the checkpoint matters more than the proof of an
    exact resume that it would contain."""
    losses, why = None, "it failed on another rank"
    try:
        losses = _next_losses(session)
    except (fence.Fenced, LostPeer):
        raise
    except Exception as error:
        why = f"{type(error).__name__}: {error}"
    failed = session.world.any(losses is None)
    if losses is not None and not failed:
        return float(session.stepper.mean_loss(losses))
    # outside the handler: the failed pass's frames, and the tensors they hold, are freed
    session.reporter.emit(
        events.Notice(
            level="warning",
            code="next_loss_missing",
            message="the checkpoint is saved without the next step's loss, so the next resume "
            f"cannot be verified by it: {why}",
            step=session.state.step,
        )
    )
    return None


def _next_losses(session: Session) -> Tensor:
    """Losses of this rank's micro-batches of the next step, of whose mean the step will report;
    gradients are discarded."""
    cursor = session.loader.state_dict()
    try:
        failpoint.hit("saving.next_loss")
        batches = session.next_step_batches()
        return session.stepper.own_losses(batches.own, batches.tokens)
    finally:
        session.loader.load_state_dict(cursor)


# --- when ----------------------------------------------------------------------------------------


def _cadence_due(session: Session) -> bool:
    spec, step = session.order.spec.checkpoint, session.state.step
    by_step = spec.every_steps and step % spec.every_steps == 0
    by_keep = spec.keep_every and step % spec.keep_every == 0
    waited = time.monotonic() - session.save_began
    by_time = spec.every_seconds and waited >= spec.every_seconds
    return bool(by_step or by_keep or by_time) and step != 0 and not session.is_saved


def _at_warmdown(session: Session) -> bool:
    """True at the step where the learning rate begins to decay, from which an extend may start."""
    schedule, step = session.order.schedule, session.state.step
    falls = schedule.start_step < schedule.warmdown_start < schedule.end_step
    return falls and step == schedule.warmdown_start and not session.is_saved


def _room(session: Session) -> bool:
    """True if a checkpoint fits on the disk; otherwise sends a notice, and training continues."""
    need = session.checkpoint_bytes * FREE_MARGIN
    free = store.free_bytes(session.run_dir.checkpoints)
    if free >= need:
        return True
    session.save_began = time.monotonic()
    session.reporter.emit(
        events.CheckpointFailed(
            step=session.state.step,
            message=f"not enough disk space: a checkpoint takes {units.num_bytes(need)}, "
            f"{units.num_bytes(free)} are free; training continues, the last good checkpoint is "
            "kept",
            errno=errno.ENOSPC,
        )
    )
    return False


# --- afterwards ----------------------------------------------------------------------------------


def _finish(session: Session, saved: SavedCheckpoint) -> None:
    _report(session, saved)
    waiting, session.unanswered = session.unanswered, None
    if waiting:
        _answer(session, waiting, None if saved.path is not None else str(saved.error))


def _report(session: Session, saved: SavedCheckpoint) -> None:
    """Report a finished save; after a good one, remove checkpoints by retention."""
    if saved.path is None or saved.manifest is None:
        if isinstance(saved.error, fence.Fenced):
            raise saved.error
        number = saved.error.errno if isinstance(saved.error, OSError) else None
        session.reporter.emit(
            events.CheckpointFailed(
                step=saved.snapshot_step, message=str(saved.error), errno=number
            )
        )
        return
    session.parent, session.saved_step = saved.path.name, saved.snapshot_step
    session.saved_evaluated = None
    bpb = saved.manifest.evaluations.get("bpb", {})
    session.reporter.emit(
        events.CheckpointSaved(
            step=saved.snapshot_step,
            name=saved.path.name,
            bytes=sum(f.bytes for f in saved.manifest.files.values()),
            manifest_sha256=store.manifest_sha256(saved.path),
            seconds=saved.seconds,
            stall_seconds=saved.stall_seconds,
            why=saved.why,  # pyright: ignore[reportArgumentType] - validated by the event
            pinned=saved.manifest.pinned,
            val_bpb=bpb.get("value") if bpb.get("step") == saved.snapshot_step else None,
            next_loss=saved.manifest.next_loss,
        )
    )
    _retain(session)


def _retain(session: Session) -> None:
    """Remove surplus checkpoints. Each is reported before it is removed: a kill in between leaves
    a directory that the next pass removes, never a row without its files."""
    spec = session.order.spec.checkpoint
    held = retention.held(session.run_dir.checkpoints, session.own_lineage, session.order.run_id)
    surplus = retention.surplus(
        held,
        keep_last=spec.keep_last,
        keep_every=spec.keep_every,
        pinned=set(session.order.pinned),
        keep_steps=_landmarks(session.order),
    )
    for path in surplus:
        if holds.is_held(path.parent, path.name):
            continue  # a job reads it: the next pass tries again
        session.reporter.emit(events.CheckpointRemoved(name=path.name))
        try:
            store.remove(path)
        except OSError as error:  # it only takes space: the next pass tries again
            print(f"{path.name} could not be removed: {error}", file=sys.stderr)


def _landmarks(order: AttemptOrder) -> set[int]:
    """Steps where phases begin, end and start their warmdown: an extend may start from them."""
    schedules = (order.schedule, *order.earlier_schedules)
    return {
        step for s in schedules for step in (s.start_step, s.warmdown_start, s.end_step) if step
    }


def _is_full(error: BaseException | None) -> bool:
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def update_spec(session: Session, command: commands.Update) -> None:
    """Apply new cadences and policies: the parts of the spec that may change while it trains."""
    spec = session.order.spec
    for name, model, changes in (
        ("evaluate", EvaluateSpec, command.evaluate),
        ("checkpoint", CheckpointSpec, command.checkpoint),
        ("recovery", RecoverySpec, command.recovery),
    ):
        if changes:
            merged = {**getattr(spec, name).model_dump(), **changes}
            setattr(spec, name, model.model_validate(merged))
