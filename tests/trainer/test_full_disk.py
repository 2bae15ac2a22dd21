"""Trainers on a disk that is really full: nothing is lost, and they continue when there is room."""

from __future__ import annotations

import errno
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import kernel
from tests.trainer.forkserver import ForkServer
from tests.trainer.lab import TINY, Lab, read
from trainer.checkpoint import store
from trainer.contract.rundir import LOCK, OUTBOX

STEPS = 40
SPEC = {**TINY, "horizon": {"steps": STEPS}, "checkpoint": {"every_steps": 8}}

pytestmark = pytest.mark.needs("mounts")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with kernel.small_disk(tmp_path / "disk", 24 << 20) as mounted:
        yield mounted


def until(holds: Callable[[], Any], why: str, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, why
        time.sleep(0.005)


def steps(directory: Path) -> int:
    return sum(r["kind"] == "step" for r in read(directory / OUTBOX))


def waits_for(directory: Path) -> str | None:
    return json.loads((directory / LOCK).read_bytes())["waiting"]


@pytest.mark.parametrize("leave", [0, 64 << 10], ids=["nothing left", "too little to save"])
def test_f17_f18_a_full_disk_is_waited_for_and_costs_nothing(
    disk: Path, corpus: Path, fork_server: ForkServer, leave: int
) -> None:
    """With nothing left the journal waits; with a little the steps continue and only saves fail."""
    lab = Lab(disk / "run", fork_server, dict(SPEC))
    lab.prepare(corpus)
    directory = lab.order()
    fork_server.start(directory, "loop.step=delay(0.02)")
    until(lambda: steps(directory) >= 10, "it never came to step 10")
    good = {p.name for p in lab.run_dir.checkpoints.glob("step-*")}
    with kernel.filled(disk, leave):
        if leave == 0:
            until(lambda: waits_for(directory) == "disk_full", "it never said that it waits")
            stood = steps(directory)
        else:
            until(lambda: lab.events("checkpoint_failed"), "no save failed")
            until(lambda: steps(directory) == STEPS, "the steps did not continue")
            stood = STEPS
        assert not (directory / "exit.json").exists()
        for name in good:
            store.verify(lab.run_dir.checkpoints / name)
    assert fork_server.wait() == 0, lab.log(1)
    lab.close_attempt(directory)
    assert lab.exit()["outcome"] == "completed"
    failed = lab.events("checkpoint_failed")
    assert {f["errno"] for f in failed} <= {errno.ENOSPC}
    notices = [n["code"] for n in lab.events("notice")]
    assert ("disk_full" in notices) == (leave == 0)
    assert bool(failed) or leave == 0
    assert stood <= STEPS
    assert set(lab.curve()) == set(range(STEPS))
    records = read(directory / OUTBOX)
    assert [r["seq"] for r in records] == list(range(len(records)))
    whole = {p.name for p in lab.run_dir.checkpoints.glob("step-*")}
    for name in whole:
        store.verify(lab.run_dir.checkpoints / name)
    assert not [p for p in lab.run_dir.checkpoints.iterdir() if p.name.startswith(".")]
