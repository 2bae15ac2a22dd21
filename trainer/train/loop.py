"""The training loop: at each step boundary commands, due evaluations, a due save, then one step.

A loss is read one step late on a GPU, so the device never waits for the host. Every ordinary end
returns an `Ended` event; errors propagate as exceptions to `trainer.__main__`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch

from trainer.checkpoint.fence_watch import FenceWatch
from trainer.contract import commands, events, failpoint
from trainer.contract.reasons import Reason
from trainer.train import boundary, checkpointing, corpus_watch, evaluations, val_bpb
from trainer.train.forward_backward import MicroBatch
from trainer.train.minute_log import MinuteLog
from trainer.train.phase_schedule import scheduled
from trainer.train.rank_rows import RankRows
from trainer.train.session import Session
from trainer.train.spike_detector import SpikeWatch
from trainer.train.step_result import Reading


@dataclass
class Pending:
    """A step that was launched and whose loss is not read yet.

    micro_batches: pinned memory must not return to the loader before the device has copied it.
    """

    step: int
    micro_batches: list[MicroBatch]
    reading: Reading
    launched: float
    schedule: dict[str, float]
    batch_sha256: str


class StepClock:
    """Duration of each step, no time counted twice: a step launched while the previous one still
    ran begins when that one ends."""

    def __init__(self) -> None:
        self._ended = float("-inf")

    def seconds(self, launched: float, ended: float) -> float:
        """Seconds of a step from its launch and end times; call in step order."""
        began, self._ended = max(launched, self._ended), ended
        return ended - began


class NonFinite(Exception):
    """The loss of `step` was NaN or infinite; that step did not change the weights."""

    def __init__(self, step: int, loss: float) -> None:
        super().__init__(f"the loss of step {step:,} is {loss}")
        self.step, self.loss = step, loss


def run(session: Session) -> events.Ended:
    """Train to the end of the phase, or until stopped, and return the `Ended` event."""
    loop = _Loop(session)
    if session.saved_step == session.state.step and evaluations.due_kinds(session, loop.at_end):
        session.saved_evaluated = dict(session.state.evaluated)
    val_bpb.recheck_at_start(session)
    session.reporter.emit(events.Stage(stage="training"))
    while True:
        ended = loop.handle_commands()
        if ended:
            return ended
        if not loop.run_due_work():
            continue  # a command interrupted an evaluation: handle it first
        if loop.at_end:
            return loop.finish("completed", Reason.finished, "end")
        corpus_watch.report(session)
        loop.check_for_successor()
        loop.step()
        failpoint.hit("loop.step")


class _Loop:
    """State of the training loop."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.order, self.state = session.order, session.state
        self.pending: Pending | None = None
        self.spikes = SpikeWatch()
        self.log = MinuteLog(session.order)
        self.clock = StepClock()
        self.rows = RankRows(session)
        self.fence = FenceWatch(session.run_dir.root, session.order.attempt)
        self.first = True

    @property
    def at_end(self) -> bool:
        return self.state.step >= self.order.end_step

    # --- commands --------------------------------------------------------------------------------

    def handle_commands(self) -> events.Ended | None:
        """Execute commands received since the last boundary; returns the end, if one ends it."""
        session = self.session
        self.heard = boundary.poll(session.world, session.control, self._due_number, self.rows.due)
        for command in self.heard.commands:
            ended = self._apply_command(command)
            if ended:
                return ended
        if self.heard.terminated and not self._is_done():
            return self.finish("terminated", Reason.terminated, "terminate")
        if self.heard.save_requested:
            self.flush_pending()
            checkpointing.save_now(session, "requested")
        if self.heard.rows_due:
            self.rows.gather()
        return None

    def _due_number(self) -> int:
        return checkpointing.WHYS.index(checkpointing.due(self.session))

    def _due(self) -> checkpointing.Why | None:
        """Why a save is due; with several ranks, as rank 0 sees it."""
        world = self.session.world
        if world.size == 1:
            return checkpointing.due(self.session)
        number = self.heard.due
        if not self.heard.is_quiet:
            (number,) = world.all_reduce_max([self._due_number() if world.leads else 0])
        return checkpointing.WHYS[number]

    def _apply_command(self, command: commands.AnyCommand) -> events.Ended | None:
        match command:
            case commands.Pause():
                if self._is_done():
                    return None  # the phase completes instead
                return self.finish("paused", Reason.requested, "pause")
            case commands.EndPhase():
                return self.finish("phase_ended", Reason.requested, "end")
            case commands.Cancel():
                self.flush_pending()
                checkpointing.drain(self.session)
                return self._ended("cancelled", Reason.requested, None)
            case commands.Save():
                self.flush_pending()
                checkpointing.save_on_request(self.session, command)
                return None
            case commands.Evaluate():
                self.flush_pending()
                evaluations.measure_on_request(self.session, command)
            case commands.Pin():
                self.order.pinned[:] = command.names
            case commands.Update():
                checkpointing.update_spec(self.session, command)
        self._answer(command)
        return None

    def _is_done(self) -> bool:
        return self.at_end and not evaluations.due_kinds(self.session, self.at_end)

    def _answer(self, command: commands.AnyCommand) -> None:
        self.session.reporter.emit(events.CommandDone(command_id=command.id, outcome="done"))

    def finish(self, outcome: Any, reason: Reason, why: Any) -> events.Ended:
        """Save the last checkpoint and return the end."""
        self.flush_pending()
        name = checkpointing.save_last(self.session, why)
        return self._ended(outcome, reason, name)

    def _ended(self, outcome: Any, reason: Reason, checkpoint: str | None) -> events.Ended:
        return events.Ended(
            outcome=outcome, reason=reason, step=self.state.step, checkpoint=checkpoint
        )

    # --- what is due ------------------------------------------------------------------------------

    def run_due_work(self) -> bool:
        """Run evaluations and saves due at this boundary. Returns False if a command arrived.

        The step in flight is finished first: an evaluation or a save needs its loss.
        """
        kinds = evaluations.due_kinds(self.session, self.at_end)
        why = self._due()
        if kinds or why or self.at_end:
            self.flush_pending()
        checkpointing.collect(self.session)
        if kinds and not evaluations.measure(self.session, kinds):
            return False
        if why:
            checkpointing.save_now(self.session, why, pinned=why == "warmdown")
        return True

    def check_for_successor(self) -> None:
        """Raises Fenced when a newer attempt of the run has taken over."""
        if self.session.world.leads:
            self.fence.check()

    # --- one step --------------------------------------------------------------------------------

    def step(self) -> None:
        """Launch one step; report the one before it."""
        session, step = self.session, self.state.step
        compiling = self.first and session.stepper.compiler.active
        if compiling:
            session.reporter.emit(events.Stage(stage="compiling", detail="the first step"))
        if skip_batches(session, step):
            session.reporter.emit(_skipped(step))
        if failpoint.corrupts("loop.weights"):
            flip_a_bit(session)
        launched = time.perf_counter()
        batches = session.next_step_batches()
        schedule = scheduled(self.order, step)
        result = session.stepper.train_step(
            batches.own,
            batches.tokens,
            lr_multiplier=schedule["lr_multiplier"],
            momentum=schedule["momentum"],
            weight_decay=schedule["weight_decay"],
        )
        before, self.pending = self.pending, None
        if before:
            self._report(before)
        self.pending = Pending(
            step, batches.own, Reading(result), launched, schedule, batches.sha256
        )
        self.state.step = step + 1
        self.state.evaluations = {}
        self.state.tokens_seen += self.order.plan.batch.tokens
        if self.first or not reads_late(session.device):
            self.flush_pending()
        if self.first:
            session.agree_on_compiler()
        if compiling:
            session.check_compiler()
            session.reporter.emit(events.Stage(stage="training"))
        self.first = False
        self.rows.count_step()
        session.reporter.sync_if_due()

    def flush_pending(self) -> None:
        """Read and report the step in flight, if any; then no step is pending."""
        before, self.pending = self.pending, None
        if before:
            self._report(before)

    def _report(self, done: Pending) -> None:
        session, state = self.session, self.state
        loss, grad_norm, is_finite = done.reading.values()
        loss = failing_loss(loss)
        if not is_finite or loss != loss:
            raise NonFinite(done.step, loss)
        seconds = self.clock.seconds(done.launched, time.perf_counter())
        sensors = session.sensors.read()
        watts = sensors.get("power_watts")
        if watts is not None and session.world.size > 1:
            sensors["power_watts"] = watts = watts + self.rows.watts
        state.training_seconds += seconds
        joules = None if watts is None else watts * seconds
        state.energy_joules += joules or 0.0
        smooth = state.observe(loss)
        session.reporter.emit(
            events.Step(
                step=done.step,
                loss=loss,
                loss_smooth=smooth,
                lr_multiplier=done.schedule["lr_multiplier"],
                momentum=done.schedule["momentum"],
                weight_decay=done.schedule["weight_decay"],
                grad_norm=grad_norm,
                tokens=self.order.plan.batch.tokens,
                seconds=seconds,
                energy_joules=joules,
                batch_sha256=done.batch_sha256,
                **sensors,  # pyright: ignore[reportArgumentType] - its fields, some int
            )
        )
        self.log.add(done.step, smooth, self.order.plan.batch.tokens)
        self._check_resume(done.step, loss)
        spike = self.spikes.observe(done.step, loss)
        if spike:
            session.reporter.emit(spike)

    def _check_resume(self, step: int, loss: float) -> None:
        """Exact-resume check: the first step after a resume must repeat the recorded loss bits."""
        expected, self.session.expected_loss = self.session.expected_loss, None
        skipped = any(first == step for first, _ in self.order.skip_steps)
        if expected is None or skipped:
            return
        inexact = self.session.inexact
        same = torch.tensor(loss).equal(torch.tensor(expected))
        verdict = "approximate" if inexact else ("verified" if same else "mismatch")
        self.session.reporter.emit(
            events.ResumeChecked(
                step=step,
                what="next_loss",
                verdict=verdict,
                expected=expected,
                found=loss,
                why="; ".join(inexact),
            )
        )


def reads_late(device: torch.device) -> bool:
    """True if a loss is read after the next step was launched, as on asynchronous devices."""
    return device.type == "cuda"


def skip_batches(session: Session, step: int) -> bool:
    """Discard the batches of `step` if a rewind marked them as offending; returns True if so."""
    spans = [last - first + 1 for first, last in session.order.skip_steps if first == step]
    for _ in range(sum(spans)):
        session.next_step_batches()
    return bool(spans)


def _skipped(step: int) -> events.Notice:
    words = f"the batch of step {step:,} is skipped: its loss was not finite before"
    return events.Notice(level="warning", code="batch_left_out", message=words, step=step)


def flip_a_bit(session: Session) -> None:
    """Failpoint: flip a bit of the weights, as failing memory does."""
    weights = next(session.model.parameters()).detach().view(-1)
    weights[:1].view(torch.uint8)[-2:-1].bitwise_xor_(64)


def failing_loss(loss: float) -> float:
    """Failpoint: the loss, or NaN if the failpoint is set."""
    return float("nan") if failpoint.corrupts("loop.loss") else loss
