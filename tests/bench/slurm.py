"""Slurm against local: time from the request to the first step, and the cost of polling a cluster.

The cluster is one of this machine (tests/slurm_cluster.py) with free nodes and a controller that
schedules at once: a real cluster's queue adds to it. Without Slurm's programs it reports that.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from server.launch.slurm.poller import POLL_INTERVAL_SECONDS, SlurmPoller
from tests import slurm_cluster
from tests.bench import bars
from tests.e2e.real_daemon import TINY, RealDaemon
from tests.slurm_cluster import SlurmCluster

TURNS = 5
POLLS = 20
DEADLINE_SECONDS = 120
BODY: dict[str, Any] = {
    **TINY,
    "device": "cpu",
    "horizon": {"steps": 100_000},
    "checkpoint": {"every_steps": None, "every_seconds": None},
    "evaluate": {"bpb_every": None, "sample_every": None},
}


def main() -> None:
    if not slurm_cluster.is_there():
        print(f"not measured: {', '.join(slurm_cluster.PROGRAMS)} are not all installed here")
        return
    with tempfile.TemporaryDirectory(prefix="traind-bench-") as folder:
        cluster = SlurmCluster(Path(folder) / "slurm")
        try:
            _first_steps(Path(folder), cluster)
            _polling(cluster)
        finally:
            cluster.end()


def _first_steps(folder: Path, cluster: SlurmCluster) -> None:
    (folder / "daemon").mkdir()
    daemon = RealDaemon(folder / "daemon", TRAIND_TICK_SECONDS="1", **cluster.environment)
    try:
        _first_step(daemon, "warm-up", None)  # prepares the data
        turns = []
        for turn in range(TURNS):
            local = _first_step(daemon, f"local-{turn}", None)
            there = _first_step(daemon, f"slurm-{turn}", {"engine": "slurm"})
            print(f"request to first step: local {local:.1f} s, as a job of Slurm {there:.1f} s")
            turns.append(there - local)
            cluster.wait_idle()
        bars.at_most("request to first step beyond local's", statistics.median(turns), 3.0, "s")
    finally:
        daemon.end()


def _first_step(daemon: RealDaemon, name: str, place: dict[str, Any] | None) -> float:
    """Seconds until the daemon has a step; the run is removed afterwards."""
    began = time.perf_counter()
    daemon.client.create_run({**BODY, "name": name, "place": place})
    daemon.until(name, lambda now: now.step >= 1, seconds=DEADLINE_SECONDS)
    took = time.perf_counter() - began
    daemon.client.cancel(name)
    daemon.until_state(name, "cancelled", seconds=DEADLINE_SECONDS)
    return took


def _polling(cluster: SlurmCluster) -> None:
    """CPU time of the thread and of the squeue that it starts, for a poll every few seconds."""
    os.environ.update(cluster.environment)
    cluster.hold()
    poller = SlurmPoller(interval_seconds=0.1)
    poller.track("holder")
    try:
        _until_polled(poller, 1)
        before, began = poller.polls, _cpu_seconds()
        _until_polled(poller, before + POLLS)
        each = (_cpu_seconds() - began) / (poller.polls - before)
    finally:
        poller.close()
    print(f"a poll takes {each * 1e3:.1f} ms of CPU, one comes every {POLL_INTERVAL_SECONDS:.0f} s")
    share = 100 * each / POLL_INTERVAL_SECONDS
    bars.at_most("polling a cluster", share, 0.5, "% of a core")


def _until_polled(poller: SlurmPoller, count: int) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while poller.polls < count:
        if time.monotonic() > deadline:
            raise RuntimeError(f"{poller.polls} of {count} polls were answered: {poller.silence}")
        time.sleep(0.5)


def _cpu_seconds() -> float:
    """CPU time of this process and of its children that have ended, in seconds."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


if __name__ == "__main__":
    main()
