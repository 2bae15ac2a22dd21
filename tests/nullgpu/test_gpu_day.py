"""Dry run of the GPU day with a small model: every stage except the tests of a GPU's numbers.

Its output means nothing; it shows stages that fail, hang or wait for a file that moved.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.bench import gpu
from tests.nullgpu import environment

pytestmark = [pytest.mark.needs("nullgpu"), pytest.mark.timeout(1800)]

STAGES = ["card", *gpu.TOGETHER, *gpu.ALONE]
VALUES = {"cards"}  # needs a GPU's numbers, which a null GPU does not have


def test_the_day_runs_through(tmp_path: Path, holders: Path) -> None:
    wanted = [name for name in STAGES if name not in VALUES]
    day = subprocess.run(
        [str(environment.python()), "-m", "tests.bench.gpu", "--small", "--slow", "20",
         "--seconds", "1780", "--only", ",".join(wanted)],
        env=environment.variables("h200", holders, TMPDIR=str(tmp_path)),
        cwd=environment.ROOT, capture_output=True, text=True, timeout=1790, check=False,
    )  # fmt: skip
    assert day.returncode == 0, day.stdout + day.stderr
    for name in wanted:
        assert f"{name}, after " in day.stdout, f"{name} did not run: {day.stdout}"
    assert "left out" not in day.stdout
