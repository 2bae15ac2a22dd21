"""Runs on a real Slurm, through the real daemon and trainer, on the CPU of this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from server.schemas.progress import Progress
from tests.e2e.real_daemon import TINY, RealDaemon
from tests.slurm_cluster import SlurmCluster

pytestmark = pytest.mark.needs("slurm")
STEPS = 20_000  # more than any test waits for
ASKED: dict[str, Any] = {
    **TINY,
    "device": "cpu",
    "horizon": {"steps": STEPS},
    "checkpoint": {"every_steps": 20},
    "evaluate": {"bpb_every": None, "sample_every": None},
    "place": {"engine": "slurm"},
}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmCluster]:
    cluster = SlurmCluster(tmp_path_factory.mktemp("slurm"), preempts=True)
    yield cluster
    cluster.end()


@pytest.fixture(scope="module")
def daemon(cluster: SlurmCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealDaemon]:
    daemon = RealDaemon(
        tmp_path_factory.mktemp("data"),
        TRAIND_FAIL="loop.step=delay(0.02)",
        **cluster.environment,
    )
    yield daemon
    daemon.end()


@pytest.fixture(autouse=True)
def mended(cluster: SlurmCluster, request: pytest.FixtureRequest) -> None:
    """A test that failed, or left a node drained, must not fail those after it."""
    cluster.mend()
    if "daemon" in request.fixturenames:
        request.getfixturevalue("daemon").clear()
        cluster.wait_idle()


def test_it_trains_pauses_and_resumes_exactly(daemon: RealDaemon, cluster: SlurmCluster) -> None:
    daemon.client.create_run({"name": "first", **ASKED})
    daemon.until("first", lambda now: now.step >= 25)
    daemon.client.pause("first")
    daemon.until_state("first", "paused")
    assert all(state == "COMPLETED" for _, _, state in cluster.jobs())
    daemon.client.resume("first")
    daemon.until("first", lambda now: now.attempt == 2 and now.exact_resume == "verified")
    daemon.client.cancel("first")
    daemon.until_state("first", "cancelled")
    assert not cluster.jobs("running,pending,completing")


def job_of(cluster: SlurmCluster, *states: str) -> str:
    """The number of the one job of ours in one of these states."""
    own: list[str] = []

    def is_there() -> bool:
        own[:] = [
            job
            for job, name, state in cluster.jobs()
            if state in states and name.startswith("traind-")
        ]
        return len(own) == 1

    cluster.until(is_there)
    return own[0]


def attempt_directory(daemon: RealDaemon, run: str, number: int) -> Path:
    return daemon.data_dir / "runs" / daemon.client.run(run).id / "attempts" / f"{number:04d}"


def end(daemon: RealDaemon, run: str) -> None:
    daemon.client.cancel(run)
    daemon.until_state(run, "cancelled")


def test_a_waiting_job_is_shown_with_slurms_reason_and_taken_back(
    daemon: RealDaemon, cluster: SlurmCluster
) -> None:
    holder = cluster.hold()
    daemon.client.create_run({"name": "waits", **ASKED})
    now = daemon.until("waits", lambda now: "pending" in (now.reason_message or ""))
    assert (now.state, now.reason) == ("starting", "waiting_for_engine")
    job = job_of(cluster, "PENDING")
    assert now.reason_message.startswith(f"Slurm job {job} is pending: ")
    daemon.client.pause("waits")
    assert daemon.until_state("waits", "paused").reason == "requested"
    assert not cluster.jobs("pending")
    daemon.client.resume("waits")
    job_of(cluster, "PENDING")
    cluster.command("scancel", holder)
    daemon.until("waits", lambda now: now.step >= 2 and now.reason == "requested")
    end(daemon, "waits")


def test_a_job_that_is_refused_names_why_and_resumes_with_another_place(
    daemon: RealDaemon,
) -> None:
    wrong = {"engine": "slurm", "partition": "nope"}
    daemon.client.create_run({"name": "refused", **ASKED, "place": wrong})
    now = until_failed(daemon, "refused")
    assert now.reason == "engine_refused"
    assert "Invalid partition name specified" in now.reason_message
    daemon.client.resume("refused", place={"engine": "slurm", "partition": "main"})
    daemon.until("refused", lambda now: now.step >= 2)
    end(daemon, "refused")


def until_failed(daemon: RealDaemon, run: str) -> Progress:
    deadline = time.monotonic() + 60
    while (now := daemon.client.progress(run)).state != "failed":
        assert time.monotonic() < deadline, now
        time.sleep(0.05)
    return now


def test_f64_cancelled_from_outside_it_is_paused_and_not_submitted_again(
    daemon: RealDaemon, cluster: SlurmCluster
) -> None:
    daemon.client.create_run({"name": "outside", **ASKED})
    daemon.until("outside", lambda now: now.step >= 2)
    job = job_of(cluster, "RUNNING")
    cluster.command("scancel", job)
    now = daemon.until_state("outside", "paused")
    assert now.reason == "engine_cancelled"
    assert now.reason_message.startswith(f"Slurm job {job} was cancelled on node")
    daemon.client.resume("outside")
    daemon.until("outside", lambda now: now.attempt == 2 and now.exact_resume == "verified")
    end(daemon, "outside")


def test_f66_a_controller_that_is_down_kills_nobody(
    daemon: RealDaemon, cluster: SlurmCluster
) -> None:
    daemon.client.create_run({"name": "down", **ASKED})
    before = daemon.until("down", lambda now: now.step >= 2)
    cluster.stop_controller()
    try:
        daemon.until("down", lambda now: now.step >= before.step + 100)
        daemon.client.pause("down")  # reaches the trainer, and then nobody can say that it ended
        record = attempt_directory(daemon, "down", 1) / "exit.json"
        cluster.until(record.exists)
        now = daemon.client.progress("down")
        assert (now.state, now.attempt) == ("pausing", 1)
    finally:
        cluster.start_controller()
    daemon.until_state("down", "paused")
    daemon.client.resume("down")
    daemon.until("down", lambda now: now.attempt == 2 and now.exact_resume == "verified")
    end(daemon, "down")


def test_f67_a_node_that_fails_leaves_a_trainer_that_commits_nothing(
    daemon: RealDaemon, cluster: SlurmCluster
) -> None:
    daemon.client.create_run({"name": "node", **ASKED})
    daemon.until("node", lambda now: now.step >= 45)
    (node,) = cluster.command("squeue", "-h", "-t", "R", "-o", "%N").stdout.split()
    cluster.kill(node)
    cluster.command("scontrol", "update", f"nodename={node}", "state=down", "reason=test")
    daemon.until("node", lambda now: now.attempt == 2 and now.exact_resume == "verified")
    ended = daemon.client.attempts("node")[0]
    assert ended.reason == "node_failed"
    assert f"on {node}" in ended.message
    first = attempt_directory(daemon, "node", 1)
    cluster.until((first / "exit.json").exists)  # it lives on until it wants to save
    assert json.loads((first / "exit.json").read_text())["reason"] == "superseded"
    cluster.start_node(node)
    cluster.command("scontrol", "update", f"nodename={node}", "state=resume")
    end(daemon, "node")
    cluster.wait_idle()


def test_f68_requeued_by_an_administrator_it_goes_on_in_a_new_job(
    daemon: RealDaemon, cluster: SlurmCluster
) -> None:
    """Its job is marked as one that may be requeued: traind submits none like that."""
    daemon.client.create_run({"name": "requeued", **ASKED})
    daemon.until("requeued", lambda now: now.step >= 25)
    job = job_of(cluster, "RUNNING")
    cluster.command("scontrol", "update", f"jobid={job}", "requeue=1")
    cluster.command("scontrol", "requeue", job)
    daemon.until("requeued", lambda now: now.attempt == 2 and now.exact_resume == "verified")
    ended = daemon.client.attempts("requeued")[0]
    assert ended.reason == "preempted"
    assert f"Slurm job {job} was requeued" in ended.message
    cluster.until(lambda: job not in [one for one, _, _ in cluster.jobs("pending,running")])
    end(daemon, "requeued")


def test_f65_killed_between_sbatch_and_the_record_it_finds_its_job(
    cluster: SlurmCluster, tmp_path: Path
) -> None:
    dying = {"TRAIND_FAIL": "supervisor.record=1*kill;loop.step=delay(0.02)"}
    daemon = RealDaemon(tmp_path, **dying, **cluster.environment)
    try:
        daemon.client.create_run({"name": "found", **ASKED})
        daemon.process.wait(60)
        daemon.environment["TRAIND_FAIL"] = "loop.step=delay(0.02)"
        daemon.start()
        before = daemon.until("found", lambda now: now.step >= 2)
        daemon.kill()  # and once more, while it trains
        daemon.start()
        now = daemon.until("found", lambda now: now.step >= before.step + 10)
        assert now.attempt == 1
        job = job_of(cluster, "RUNNING")
        (attempt,) = daemon.client.attempts("found")
        assert attempt.slurm_job == job
    finally:
        daemon.end()


def test_f69_before_the_time_limit_it_saves_and_goes_on_in_a_new_job(
    daemon: RealDaemon,
) -> None:
    limited = {"engine": "slurm", "time_limit": "1", "save_seconds": 20}
    sparse = {"every_steps": 10_000}
    daemon.client.create_run({"name": "limit", **ASKED, "place": limited, "checkpoint": sparse})
    now = daemon.until("limit", lambda now: now.attempt == 2 and now.exact_resume == "verified")
    assert now.step > 0
    ended = daemon.client.attempts("limit")[0]
    assert (ended.outcome, ended.reason) == ("terminated", "time_limit")
    assert "ended at its time limit of 1:00" in ended.message
    assert ended.steps_lost == 0
    end(daemon, "limit")


def test_f70_a_gang_on_two_nodes_ends_in_the_bits_of_one(
    daemon: RealDaemon, cluster: SlurmCluster
) -> None:
    gang = {
        **ASKED,
        "batch": {"tokens": 512, "device_batch_size": 4},
        "place": {"engine": "slurm", "nodes": 2},
    }
    del gang["device"]
    daemon.client.create_run({"name": "gang", **gang, "devices": ["cpu", "cpu"]})
    daemon.until("gang", lambda now: now.step >= 25)
    job = job_of(cluster, "RUNNING")
    nodes = cluster.command("squeue", "-h", "-j", job, "-o", "%D %N").stdout.strip()
    assert nodes == "2 node[1-2]"
    assert [row.rank for row in daemon.client.ranks("gang")] == [0, 1]
    daemon.client.pause("gang")
    daemon.until_state("gang", "paused")
    alone = {"engine": "slurm", "nodes": 1}
    daemon.client.resume("gang", place=alone)
    daemon.until("gang", lambda now: now.attempt == 2 and now.exact_resume == "verified")
    end(daemon, "gang")


def test_preempted_it_saves_and_comes_back(daemon: RealDaemon, cluster: SlurmCluster) -> None:
    daemon.client.create_run({"name": "preempted", **ASKED})
    daemon.until("preempted", lambda now: now.step >= 2)
    holder = cluster.hold(partition="urgent")
    cluster.until(lambda: daemon.client.attempts("preempted")[0].ended_at is not None)
    ended = daemon.client.attempts("preempted")[0]
    assert (ended.outcome, ended.reason) == ("terminated", "preempted")
    cluster.command("scancel", holder)
    daemon.until("preempted", lambda now: now.attempt == 2 and now.exact_resume == "verified")
    end(daemon, "preempted")


def test_doctor_probes_the_shared_disk_from_a_job(cluster: SlurmCluster, tmp_path: Path) -> None:
    environment = {**os.environ, **cluster.environment, "TRAIND_DATA_DIR": str(tmp_path)}
    command = [sys.executable, "-P", "-m", "server.cli.app", "doctor", "--slurm", "--json"]
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    findings = {one["name"]: one for one in json.loads(said.stdout)["findings"]}
    assert findings["slurm"]["level"] == "ok", findings["slurm"]
    assert "rename and fsync work" in findings["slurm"]["detail"]
    assert findings["slurm clocks"]["level"] == "ok"
    assert findings["slurm locks"]["detail"] == "a lock held here is respected on the node"
    assert "slurm trainer" not in findings
    assert not list(tmp_path.glob(".probe-*"))
    wrong = [*command, "--partition", "nope"]
    said = subprocess.run(wrong, env=environment, capture_output=True, text=True, check=False)
    findings = {one["name"]: one for one in json.loads(said.stdout)["findings"]}
    assert findings["slurm"]["level"] == "problem"
    assert "Invalid partition name" in findings["slurm"]["detail"]
