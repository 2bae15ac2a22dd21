"""A trainer that was given up for dead lives on and holds the lock of its run."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.trainer.forkserver import ForkServer
from tests.trainer.lab import Lab
from trainer.checkpoint import fence, fence_watch, takeover
from trainer.checkpoint.fence import Fenced
from trainer.checkpoint.fence_watch import FenceWatch
from trainer.checkpoint.takeover import RUN_LOCK, run_lock
from trainer.contract import orders
from trainer.contract.orders import AttemptOrder
from trainer.contract.rundir import Held, acquire

LONG = {"horizon": {"steps": 100_000}, "checkpoint": {"every_steps": None, "every_seconds": None}}
SLOW = "loop.step=delay(0.02)"


@pytest.fixture
def second_server() -> Iterator[ForkServer]:
    server = ForkServer()
    yield server
    server.close()


def until(holds: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_f67_its_successor_waits_until_it_has_ended_and_trains(
    lab: Callable[..., Lab], second_server: ForkServer
) -> None:
    """It saves nothing in this time, and ends all the same."""
    run = lab("stale", **LONG)
    first = run.order()
    run.server.start(first, SLOW)
    until(lambda: any(e["step"] >= 3 for e in run.events("step", 1)))
    second = run.order()
    pid = second_server.start(second, SLOW)
    try:
        assert run.server.wait() == 1
        assert run.exit(1)["reason"] == "superseded"
        assert "attempt 2 has taken over" in run.exit(1)["message"]
        until(lambda: len(run.events("step", 2)) >= 3)
    finally:
        os.kill(pid, signal.SIGTERM)
        second_server.wait()
    assert run.exit(2)["outcome"] == "terminated"
    stages = [e["stage"] for e in run.events("stage", 2)]
    assert stages[:2] == ["waiting", "loading"]


def test_sigterm_ends_one_that_waits(lab: Callable[..., Lab]) -> None:
    run = lab("told", **LONG)
    directory = run.order()
    fd = acquire(run.run_dir.root / RUN_LOCK, "another")
    try:
        pid = run.server.start(directory)
        until(lambda: bool(run.events("stage", 1)))
        os.kill(pid, signal.SIGTERM)
        assert run.server.wait() == 0
    finally:
        os.close(fd)
    assert run.exit(1)["outcome"] == "terminated"
    assert "an earlier trainer of this run" in run.exit(1)["message"]


# --- the lock ------------------------------------------------------------------------------------


@pytest.fixture
def order(lab: Callable[..., Lab]) -> AttemptOrder:
    return orders.read(lab("locked").order(), AttemptOrder)


@pytest.fixture
def path(order: AttemptOrder) -> Path:
    return Path(order.run_dir) / RUN_LOCK


def test_it_is_taken_as_soon_as_it_is_free(order: AttemptOrder, path: Path) -> None:
    fd = acquire(path, "another")
    waiting = threading.Event()

    def release() -> None:
        waiting.wait(30)
        os.close(fd)

    thread = threading.Thread(target=release)
    thread.start()
    with run_lock(order, waiting.set), pytest.raises(Held):
        acquire(path, "a third")
    thread.join()
    os.close(acquire(path, "afterwards"))


def test_it_is_not_waited_for_forever(
    order: AttemptOrder, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(takeover, "WAIT_SECONDS", 0.2)
    fd, looks = acquire(path, "another"), []
    with pytest.raises(Held, match="another"), run_lock(order, lambda: looks.append(1)):
        pass
    assert looks
    os.close(fd)


def test_who_is_superseded_itself_does_not_wait(order: AttemptOrder, path: Path) -> None:
    fd = acquire(path, "another")
    (Path(order.run_dir) / "attempts" / "0002").mkdir()
    with pytest.raises(Fenced, match="attempt 2"), run_lock(order, lambda: None):
        pass
    assert not (Path(order.run_dir) / "attempts" / "0001" / fence.STAGING).exists()
    os.close(fd)


def test_a_trainer_looks_every_few_seconds_whether_it_is_fenced_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fence_watch, "CHECK_SECONDS", 0.0)
    (tmp_path / "attempts" / "0001").mkdir(parents=True)
    watch = FenceWatch(tmp_path, 1)
    watch.check()
    fence.shut_out(tmp_path, 2)
    with pytest.raises(Fenced, match="attempt 2"):
        watch.check()
