"""The GPU day runs dry: every stage that needs no real time, on a null H200 with a small model."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.nullgpu import environment

pytestmark = [pytest.mark.needs("nullgpu"), pytest.mark.timeout(900)]

STAGES = ("card", "parity", "step", "memory", "determinism", "save", "races")


def test_every_stage_runs_and_prints_what_it_found(holders: Path, tmp_path: Path) -> None:
    command = [str(environment.python()), "-m", "tests.bench.gpu", "--small", "--slow", "10"]
    day = subprocess.Popen(
        [*command, "--seconds", "840", "--only", ",".join(STAGES)],
        env=environment.variables("h200", holders, TMPDIR=str(tmp_path)), cwd=environment.ROOT,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        said, _ = day.communicate(timeout=860)
    finally:
        if day.poll() is None:
            os.killpg(day.pid, signal.SIGKILL)
            day.wait()
    assert day.returncode == 0, said
    for stage in STAGES:
        assert f"\n{stage}, after " in f"\n{said}", said
    assert "NVIDIA H200" in said
    assert "d12 step at 8 rows: " in said
    assert "loss_only is the next step's loss to the bit: True" in said
