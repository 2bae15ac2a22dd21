"""The loop in this process: a loss read one step late changes nothing but when it is read."""

from __future__ import annotations

import itertools

import pytest

from tests.trainer.lab import Lab
from trainer.contract import journal, orders
from trainer.contract.orders import AttemptOrder
from trainer.runtime.control import Control
from trainer.runtime.reporter import Reporter
from trainer.train import checkpointing, loop, setup
from trainer.train.loop import StepClock


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
