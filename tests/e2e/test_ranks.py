"""A run on two devices through the real daemon and torchrun: two processes of the CPU."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from tests.e2e.real_daemon import TINY, RealDaemon

STEPS = 20_000  # more than the test waits for
ASKED = {
    **TINY,
    "batch": {"tokens": 512, "device_batch_size": 4},  # two micro-batches: one a rank
    "horizon": {"steps": STEPS},
    "checkpoint": {"every_steps": 20},
    "evaluate": {"bpb_every": 40, "eval_tokens": 2048, "sample_every": None},
}


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealDaemon]:
    daemon = RealDaemon(tmp_path_factory.mktemp("ranks"), TRAIND_FAIL="loop.step=delay(0.02)")
    yield daemon
    daemon.end()


def test_f57_f59_killed_at_every_level_it_goes_on_exactly(daemon: RealDaemon) -> None:
    """kill -9 of the daemon, of rank 1, of torchrun's agent; pauses, and resumes on one and two."""
    daemon.client.create_run({"name": "gang", **ASKED, "devices": ["cpu", "cpu"]})
    daemon.until("gang", lambda now: now.step >= 22)
    first = daemon.trainer_pid("gang")
    daemon.kill()
    daemon.start()
    before = daemon.client.progress("gang").step
    daemon.until("gang", lambda now: now.step >= before + 4)
    assert daemon.trainer_pid("gang") == first  # adopted: rank 0, and not another

    rows = daemon.client.ranks("gang")
    assert [(row.rank, row.device) for row in rows] == [(0, "cpu"), (1, "cpu")]
    assert rows[0].pid == first
    os.kill(rows[1].pid, signal.SIGKILL)
    daemon.until("gang", lambda now: now.attempt == 2 and now.stage == "training")
    ended = daemon.client.attempts("gang")[0]
    assert ended.reason == "rank_lost"
    assert f"rank 1 (cpu, process {rows[1].pid})" in (ended.message or "")
    daemon.until("gang", lambda now: now.exact_resume == "verified")

    daemon.client.pause("gang")
    daemon.until_state("gang", "paused")
    until_gone(daemon)
    daemon.client.resume("gang", overrides={"devices": ["cpu"]})  # another number on the way
    daemon.until("gang", lambda now: now.attempt == 3 and now.exact_resume == "verified")
    assert daemon.client.progress("gang").devices == ["cpu"]
    daemon.client.pause("gang")
    daemon.until_state("gang", "paused")
    daemon.client.resume("gang", overrides={"devices": ["cpu", "cpu"]})
    resumed = daemon.until("gang", lambda now: now.attempt == 4 and now.stage == "training")
    assert resumed.devices == ["cpu", "cpu"]
    agent = psutil.Process(daemon.trainer_pid("gang")).ppid()
    assert "torch.distributed.run" in " ".join(psutil.Process(agent).cmdline())
    os.kill(agent, signal.SIGKILL)
    onward = daemon.until("gang", lambda now: now.step >= resumed.step + 20)
    assert (onward.attempt, onward.exact_resume) == (4, "verified")  # the ranks need no agent
    daemon.client.cancel("gang")
    daemon.until_state("gang", "cancelled")
    until_gone(daemon)
    log = httpx.get(f"{daemon.url}/v1/runs/gang/logs", params={"rank": 1, "attempt": 1})
    assert log.status_code == 200


def test_a_stopped_rank_is_continued_when_the_run_has_to_pause(daemon: RealDaemon) -> None:
    """Rank 0 is not stopped, but waits for it: nothing that was trained may be lost for that."""
    daemon.client.create_run({"name": "stopped", **ASKED, "devices": ["cpu", "cpu"]})
    daemon.until("stopped", lambda now: now.step >= 5 and len(now.ranks) == 2)
    rank = psutil.Process(daemon.client.ranks("stopped")[1].pid)
    rank.suspend()
    deadline = time.monotonic() + 30
    while rank.status() != psutil.STATUS_STOPPED:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    daemon.client.pause("stopped")
    paused = daemon.until_state("stopped", "paused")
    (attempt,) = daemon.client.attempts("stopped")
    assert (attempt.outcome, attempt.last_step) == ("paused", paused.step - 1)
    happened = daemon.client.events("stopped", limit=200).data
    (said,) = [event.message for event in happened if event.kind == "signal"]
    assert said.startswith("sent SIGCONT to the trainer: it was stopped by a signal")
    until_gone(daemon)


def test_f60_killed_between_spawn_and_record_the_daemon_adopts_rank_0(tmp_path: Path) -> None:
    daemon = RealDaemon(tmp_path, TRAIND_FAIL="supervisor.record=1*kill;loop.step=delay(0.02)")
    try:
        daemon.client.create_run({"name": "gang", **ASKED, "devices": ["cpu", "cpu"]})
        daemon.process.wait(timeout=60)
        del daemon.environment["TRAIND_FAIL"]
        daemon.start()
        daemon.until("gang", lambda now: len(now.ranks) == 2)
        (attempt,) = daemon.client.attempts("gang")  # what was started is what runs
        ranks = daemon.client.ranks("gang")
        assert daemon.trainer_pid("gang") == attempt.pid == ranks[0].pid
        daemon.client.cancel("gang")
        daemon.until_state("gang", "cancelled")
        until_gone(daemon)
    finally:
        daemon.end()


def test_a_rank_that_dies_before_all_have_joined_is_named_and_the_run_recovers(
    tmp_path: Path,
) -> None:
    daemon = RealDaemon(tmp_path, TRAIND_FAIL="trainer.load@1=kill")
    try:
        again = {"recovery": {"max_attempts_without_progress": 1000}}
        daemon.client.create_run({"name": "early", **ASKED, **again, "devices": ["cpu", "cpu"]})
        now = daemon.until("early", lambda now: now.reason == "rank_lost")
        assert now.state == "recovering"
        ended = daemon.client.attempts("early")[0]
        assert ended.reason == "rank_lost"
        assert "rank 1 (cpu, process" in ended.message
        daemon.client.cancel("early")
        daemon.until_state("early", "cancelled")
        until_gone(daemon)
    finally:
        daemon.end()


def test_a_run_whose_steps_cannot_be_shared_is_refused_with_what_can(daemon: RealDaemon) -> None:
    body = {**ASKED, "name": "x", "devices": ["cpu"] * 4}
    answer = httpx.post(f"{daemon.url}/v1/runs", json=body)
    assert answer.status_code == 422
    (error,) = answer.json()["errors"]
    assert error["pointer"] == "/batch/device_batch_size"
    assert "2 micro-batches of 4 rows a step do not divide among 4 devices" in error["detail"]
    missing = httpx.post(f"{daemon.url}/v1/runs", json={**ASKED, "name": "x", "gpus": 2})
    assert missing.status_code == 422
    assert "/gpus" in missing.text


def processes(daemon: RealDaemon) -> list[int]:
    """Processes that work in an attempt's directory of this daemon."""
    runs = str(Path(daemon.data_dir) / "runs")
    found = []
    for process in psutil.process_iter():
        try:
            if process.cwd().startswith(runs):
                found.append(process.pid)
        except psutil.Error:
            continue
    return found


def until_gone(daemon: RealDaemon) -> None:
    deadline = time.monotonic() + 60
    while processes(daemon):
        assert time.monotonic() < deadline, processes(daemon)
        time.sleep(0.05)
