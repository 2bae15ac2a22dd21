"""Threads wait asleep: a trainer beside a busy process loses about its share of the processor."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from trainer.runtime import threads

# Seconds of processor time that two threads burn for the same work while two spinning neighbours
# keep every core busy; both are pinned to the same two cores, so that the number of cores does not
# matter.
MEASURE = """
import json, os, resource, sys, time
from trainer.runtime import threads
if sys.argv[1] == "asleep":
    threads.wait_asleep()
import torch
torch.set_num_threads(2)
a = torch.ones(1 << 17)
b = torch.empty_like(a)
for _ in range(20):
    torch.add(a, 1, out=b)
used = lambda: sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
before, began, regions = used(), time.perf_counter(), 0
while time.perf_counter() - began < 2.0:
    torch.add(a, 1, out=b)
    regions += 1
print(json.dumps({"regions": regions, "cpu_seconds_each": (used() - before) / regions}))
"""


@pytest.mark.parametrize(
    "said", [{}, {"GOMP_SPINCOUNT": "7"}, {"KMP_BLOCKTIME": "1"}, {"OMP_WAIT_POLICY": "active"}]
)
def test_what_the_environment_says_is_left(
    monkeypatch: pytest.MonkeyPatch, said: dict[str, str]
) -> None:
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    threads.wait_asleep()
    wanted = said.get("OMP_WAIT_POLICY") if said else "passive"
    assert os.environ.get("OMP_WAIT_POLICY") == wanted


@pytest.mark.parametrize("module", ["trainer/__main__.py", "trainer/jobs/__main__.py"])
def test_every_process_of_ours_asks_for_it_before_torch(module: str) -> None:
    """torch reads it when it is loaded; afterwards it changes nothing."""
    root = Path(__file__).parents[2]
    name = "trainer" if module == "trainer/__main__.py" else "trainer.jobs"
    program = (
        "import sys, json, os\n"
        "from trainer.runtime import threads\n"
        "seen = []\n"
        "threads.wait_asleep = lambda: seen.append('torch' in sys.modules)\n"
        f"import runpy\nsys.argv = ['x', '/nowhere']\n"
        f"try:\n    runpy.run_module({name!r}, run_name='__main__')\n"
        "except (SystemExit, OSError):\n    pass\nprint(json.dumps(seen))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], cwd=root, capture_output=True, text=True, timeout=60
    )
    assert json.loads(ran.stdout) == [False], ran.stderr


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs two cores to wait across")
def test_beside_busy_neighbours_waiting_burns_nothing() -> None:
    """With as many spinning neighbours as cores, waiting asleep does several times the work."""
    cores = sorted(os.sched_getaffinity(0))[:2]
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_"))}

    def ran(how: str) -> dict[str, float]:
        command = [sys.executable, "-c", MEASURE, how]
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=60,
            cwd=Path(__file__).parents[2], preexec_fn=lambda: os.sched_setaffinity(0, cores),
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    neighbours = [
        subprocess.Popen(
            [sys.executable, "-c", "while True: pass"],
            preexec_fn=lambda: os.sched_setaffinity(0, cores),
        )
        for _ in cores
    ]
    try:
        spinning, asleep = ran("spinning"), ran("asleep")
    finally:
        for neighbour in neighbours:
            neighbour.kill()
            neighbour.wait()
    # how much faster depends on the machine and its other load; the processor time burnt in waiting
    # is at least as long as the work itself everywhere it was seen (2 to 20 times as long)
    assert asleep["regions"] > spinning["regions"], (spinning, asleep)
    assert asleep["cpu_seconds_each"] < 0.75 * spinning["cpu_seconds_each"], (spinning, asleep)
