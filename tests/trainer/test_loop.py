"""The loop in this process: a loss read one step late changes nothing but when it is read."""

from __future__ import annotations

import itertools
import weakref

import pytest

from tests.trainer.lab import Lab
from trainer.contract import journal, orders
from trainer.contract.orders import AttemptOrder
from trainer.runtime.control import Control
from trainer.runtime.reporter import Reporter
from trainer.train import checkpointing, loop, setup
from trainer.train.loop import StepClock
from trainer.train.session import Session
from trainer.train.step import Reading


def test_no_second_of_overlapping_steps_is_counted_twice():
    """Steps of 1 s on a device: each launched as soon as the one before the last had ended."""
    clock = StepClock()
    ended = [clock.seconds(launched, end) for launched, end in ((0, 1), (0.1, 2), (1, 3), (2, 4))]
    assert ended == [1, 1, 1, 1]
    assert clock.seconds(10, 11.5) == 1.5  # after an evaluation nothing was in flight


def train_here(lab: Lab) -> None:
    """One attempt in this process, where the way the device is read can be changed."""
    directory = lab.order()
    order = orders.read(directory, AttemptOrder)
    header = journal.JournalHeader(order.run_id, order.attempt, order.token)
    reporter = Reporter(journal.Writer.create(directory / "outbox.jsonl", header))
    parts = setup.build(order, reporter, Control(directory / "inbox.jsonl"))
    try:
        reporter.emit(loop.run(parts))
    finally:
        checkpointing.drain(parts)
        parts.close()
    reporter.sync()
    lab.close_attempt(directory)


def test_a_loss_read_late_is_the_same_loss(lab, monkeypatch):
    """As on a GPU: reports in order and once each, saves and evaluations know their loss."""
    evaluate = {"bpb_every": 10, "eval_tokens": 256, "sample_every": None}
    at_once, late = lab("at-once", evaluate=evaluate), lab("late", evaluate=evaluate)
    train_here(at_once)
    monkeypatch.setattr(loop, "reads_late", lambda device: True)
    train_here(late)
    assert late.curve() == at_once.curve()
    assert late.weights_sha256(40) == at_once.weights_sha256(40)
    steps = late.events("step")
    assert [s["step"] for s in steps] == list(range(40))
    between = [b["ts"] - a["ts"] for a, b in itertools.pairwise(steps)]
    assert sum(s["seconds"] for s in steps[1:]) <= sum(between) + 0.05
    assert [e["value"] for e in late.events("evaluation")] == pytest.approx(
        [e["value"] for e in at_once.events("evaluation")], abs=0
    )
    for kind in ("evaluation", "checkpoint_saved"):
        assert len(late.events(kind)) == len(at_once.events(kind))


def test_the_batches_of_a_step_are_held_until_the_step_is_done(lab, monkeypatch):
    """On a GPU they are pinned, and torch's allocator reuses pinned memory as soon as nothing
    refers to it, also where the device has yet to copy the targets."""
    run = lab("held", horizon={"steps": 8})
    launched: list[list[weakref.ref]] = []
    held: list[bool] = []
    next_step_batches, values = Session.next_step_batches, Reading.values

    def watched(parts):
        batches = next_step_batches(parts)
        launched.append([weakref.ref(t) for pair in batches.own for t in pair])
        return batches

    def read(reading):
        """Readings come in the order of steps."""
        held.append(all(tensor() is not None for tensor in launched[len(held)]))
        return values(reading)

    monkeypatch.setattr(Session, "next_step_batches", watched)
    monkeypatch.setattr(Reading, "values", read)
    monkeypatch.setattr(loop, "reads_late", lambda device: True)
    train_here(run)
    assert held == [True] * 8
    assert all(tensor() is None for step in launched[:-1] for tensor in step)


@pytest.mark.parametrize("asked", ["auto", "cpu"])
def test_a_run_on_the_cpu_of_a_machine_with_a_gpu_warns_unless_it_asked_for_it(
    lab, monkeypatch, asked: str
):
    monkeypatch.setattr(session, "sign_of_gpu", lambda: "/dev/nvidia0")
    run = lab("idle-gpu", horizon={"steps": 1}, device=asked)
    train_here(run)
    told = [e["message"] for e in run.events("notice") if e["code"] == "gpu_unused"]
    assert len(told) == (asked == "auto")
    assert all("/dev/nvidia0 is there, and torch" in message for message in told)
