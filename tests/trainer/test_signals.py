"""Signals to a running trainer: SIGUSR1 and SIGUSR2 save, SIGURG dumps stacks, and it continues."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.trainer.forkserver import start_torchrun
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


@pytest.mark.parametrize("ranks", [1, 2])
def test_sigterm_while_modules_are_imported_ends_it_in_order(lab, ranks):
    """Of several ranks, rank 0 gets it; a later attempt starts where this one would have."""
    run = lab(
        f"early, {ranks} ranks", batch={"tokens": 128, "device_batch_size": 2},
        numerics={"threads": 1, "compile": False, "lanes": 2}, horizon={"steps": 4},
    )  # fmt: skip
    directory = run.order(**({"devices": ["cpu", "cpu"]} if ranks > 1 else {}))
    held = {"TRAIND_FAIL": "trainer.begin=delay(3)"}  # behind the imports
    started = start_torchrun(directory, ranks, **held) if ranks > 1 else start(directory, **held)
    wait_for(lambda: catches_sigterm(of_rank_0(started.pid, ranks)))
    assert not (directory / "outbox.jsonl").exists()
    pid = of_rank_0(started.pid, ranks)
    assert pid is not None
    os.kill(pid, signal.SIGTERM)
    started.wait(60)
    record = run.exit()
    assert (record["outcome"], record["reason"]) == ("terminated", "terminated")
    # several ranks may have joined by the time they hear of it: they save before their first step
    may_save = {0} if ranks > 1 else set()
    assert {saved["step"] for saved in run.events("checkpoint_saved")} <= may_save
    assert "trainer.runtime" not in run.log(1)  # no traceback of ours
    run.close_attempt(directory)
    assert run.run_ranks(ranks) == [0] * ranks


def start(directory: Path, **environment: str) -> subprocess.Popen[bytes]:
    with (directory / "trainer.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "trainer", str(directory)],
            env={**os.environ, **environment}, stdout=log, stderr=log,
        )  # fmt: skip


def of_rank_0(started: int, ranks: int) -> int | None:
    """The process of rank 0: what was started, or a child of torchrun's agent."""
    if ranks == 1:
        return started
    children = psutil.Process(started).children()
    return next((c.pid for c in children if c.environ().get("RANK") == "0"), None)


def catches_sigterm(pid: int | None) -> bool:
    if pid is None:
        return False
    status = Path(f"/proc/{pid}/status").read_text()
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt"))
    return bool(int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1)


def kinds(directory: Path) -> list[str]:
    return [record["kind"] for record in read(directory / "outbox.jsonl")]


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)
