"""A real daemon over HTTP with a long history, while a run reports: times of polled answers.

`python -m tests.bench.serving [RUNS [STEPS [DIRECTORY]]]`; default 100 runs of 200,000 steps, some
5 GB in a temporary directory. The run that reports has a trainer without torch.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import psutil

from tests.bench import asking, bars, history
from tests.e2e.real_daemon import RealDaemon
from tests.server.house import launcher

IDLE_SECONDS = 10.0
MANNERS = {"*": {"step_seconds": 0.0003, "save_every": 10**9}}  # about 2,000 records a second


def main() -> None:
    with history.asked_for(__doc__) as folder:
        _measure(folder)


def _measure(folder: Path) -> None:
    daemon = RealDaemon(
        folder,
        TRAIND_TICK_SECONDS="1",
        TRAIND_TRAINER_PYTHON=launcher(folder),
        FAKE=json.dumps(MANNERS),
    )
    try:
        bars.at_most("start to ready", _restart(daemon), 2.0, "s")
        process = psutil.Process(daemon.process.pid)
        _wait_for_backup(folder)
        bars.at_most("idle", _idle_percent(process), 1.0, "% of a core")
        live = time.strftime("live-%H%M%S")  # the history may have been used before
        daemon.client.create_run({"name": live, "horizon": {"steps": 10**8}})
        before = daemon.until(live, lambda now: now.step > 100)
        began = time.monotonic()
        progress = _asked(daemon, f"/v1/runs/{live}/progress")
        metrics = _asked(daemon, "/v1/runs/run-0/metrics?keys=loss&max_points=1000")
        _asked(daemon, "/v1/runs?limit=50")
        after = daemon.client.progress(live)
        rate = (after.step - before.step) / (time.monotonic() - began)
        print(f"meanwhile {rate:,.0f} records/s were ingested")
        bars.at_most("progress, p99 while ingesting", progress, 10.0, "ms")
        bars.at_most("metrics at 1,000 points, p99 while ingesting", metrics, 50.0, "ms")
        bars.at_most("memory", _peak_bytes(process) / 1e6, 150.0, "MB")
    finally:
        daemon.end()


def _restart(daemon: RealDaemon) -> float:
    daemon.client.close()
    daemon.process.terminate()
    daemon.process.wait(30)
    return daemon.start()


def _wait_for_backup(folder: Path) -> None:
    """The day's first start copies the database and checks the copy."""
    began = time.monotonic()
    while not list(folder.rglob("backups/traind-*.db")):
        time.sleep(0.1)
    print(f"the day's backup took {time.monotonic() - began:.0f} s")


def _idle_percent(process: psutil.Process) -> float:
    time.sleep(2)  # remaining work of the start
    before = process.cpu_times()
    time.sleep(IDLE_SECONDS)
    after = process.cpu_times()
    spent = (after.user - before.user) + (after.system - before.system)
    return 100 * spent / IDLE_SECONDS


def _asked(daemon: RealDaemon, path: str) -> float:
    """99th percentile of the response time, in milliseconds."""
    return asking.p99(f"GET {path}", daemon.url, path)


def _peak_bytes(daemon: psutil.Process) -> int:
    """Peak memory of the daemon, plus the ingestion process's unshared memory."""
    (worker,) = (c for c in daemon.children() if c.cmdline() == daemon.cmdline())
    for line in Path(f"/proc/{daemon.pid}/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024 + worker.memory_full_info().uss
    raise RuntimeError("no VmHWM")


if __name__ == "__main__":
    main()
