"""Threads wait asleep: a trainer beside a busy process loses about its share of the processor."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from trainer.runtime import threads

# Processor time that the waiting threads burn after each parallel region, in microseconds. The main
# thread sleeps in between, so whatever its workers use then is spent on waiting, whoever else keeps
# the cores busy.
MEASURE = """
import json, os, sys, time
from trainer.runtime import threads
if sys.argv[1] == "asleep":
    threads.wait_asleep()
import torch
torch.set_num_threads(2)
a = torch.ones(1 << 17)
b = torch.empty_like(a)
torch.add(a, 1, out=b)
workers = [task for task in os.listdir("/proc/self/task") if task != str(os.getpid())]
def used():
    return sum(int(open(f"/proc/self/task/{w}/schedstat").read().split()[0]) for w in workers)
before = used()
for _ in range(100):
    torch.add(a, 1, out=b)
    time.sleep(0.002)
print(json.dumps((used() - before) / 100 / 1e3))
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


@pytest.mark.skipif(
    not Path("/proc/self/schedstat").exists() or len(os.sched_getaffinity(0)) < 2,
    reason="needs two cores to wait across and Linux's processor time of each thread",
)
def test_a_waiting_thread_burns_no_processor_time() -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_"))}

    def waiting_microseconds(how: str) -> float:
        command = [sys.executable, "-c", MEASURE, how]
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=60,
            cwd=Path(__file__).parents[2],
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    spinning, asleep = waiting_microseconds("spinning"), waiting_microseconds("asleep")
    # 2,200 to 3,700 against 11 to 30 were seen, with and without busy neighbours
    assert asleep < 0.1 * spinning, (spinning, asleep)
