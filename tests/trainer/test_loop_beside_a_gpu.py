"""The loop in this process, as it is on a machine with a GPU."""

from __future__ import annotations

import weakref

import pytest

from tests.trainer.test_loop import train_here
from trainer.contract.gpu_signs import sign_of_gpu
from trainer.train import loop
from trainer.train.session import Session


def test_the_batches_of_a_step_are_held_until_the_step_is_done(lab, monkeypatch):
    """On a GPU they are pinned, and torch's allocator reuses pinned memory as soon as nothing
    refers to it, also where the device has yet to copy the targets."""
    run = lab("held", horizon={"steps": 8})
    launched: list[list[weakref.ref]] = []
    held: list[bool] = []
    next_step_batches, values = Session.next_step_batches, loop.Reading.values

    def watched(parts):
        batches = next_step_batches(parts)
        launched.append([weakref.ref(t) for pair in batches.own for t in pair])
        return batches

    def read(reading):
        """Readings come in the order of steps."""
        held.append(all(tensor() is not None for tensor in launched[len(held)]))
        return values(reading)

    monkeypatch.setattr(Session, "next_step_batches", watched)
    monkeypatch.setattr(loop.Reading, "values", read)
    monkeypatch.setattr(loop, "reads_late", lambda device: True)
    train_here(run)
    assert held == [True] * 8
    assert all(tensor() is None for step in launched[:-1] for tensor in step)


@pytest.mark.parametrize("asked", ["auto", "cpu"])
def test_a_run_on_the_cpu_of_a_machine_with_a_gpu_warns_unless_it_asked_for_it(
    lab, monkeypatch, tmp_path, asked: str
):
    monkeypatch.setattr(sign_of_gpu, "__defaults__", ((str(tmp_path),),))  # wherever it is called
    run = lab("idle-gpu", horizon={"steps": 1}, device=asked)
    train_here(run)
    told = [e["message"] for e in run.events("notice") if e["code"] == "gpu_unused"]
    assert len(told) == (asked == "auto")
    assert all(f"{tmp_path} is there, and torch" in message for message in told)
