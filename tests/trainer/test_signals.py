"""Signals to a running trainer: SIGUSR1 and SIGUSR2 save, SIGURG dumps stacks, and it continues."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.trainer.lab import read
from trainer.contract.rundir import DUMP_SIGNAL


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2])
def test_a_signal_to_save_saves_and_training_continues(lab, number):
    run = lab("saved", checkpoint={"every_steps": None, "every_seconds": None})
    directory = run.order()
    pid = run.server.start(directory, "loop.step=delay(0.02)")
    wait_for(lambda: kinds(directory).count("step") >= 3)
    os.kill(pid, number)
    assert run.server.wait() == 0
    run.close_attempt(directory)
    (asked,) = (e for e in run.events("checkpoint_saved") if e["why"] == "requested")
    assert 3 <= asked["step"] < 40
    assert run.exit()["outcome"] == "completed"


def test_a_signal_to_dump_prints_every_stack_and_training_continues(lab):
    run = lab("dumped")
    directory = run.order()
    pid = run.server.start(directory, "loop.step=delay(0.02)")
    wait_for(lambda: kinds(directory).count("step") >= 3)
    os.kill(pid, DUMP_SIGNAL)
    wait_for(lambda: "most recent call first" in run.log(1))
    assert run.server.wait() == 0
    run.close_attempt(directory)
    assert run.exit()["outcome"] == "completed"
    assert "loop.py" in run.log(1)


def kinds(directory: Path) -> list[str]:
    return [record["kind"] for record in read(directory / "outbox.jsonl")]


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)
