"""The step's Triton kernels by Triton's interpreter, since a null GPU computes nothing."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.nullgpu import environment


@pytest.mark.needs("nullgpu")
@pytest.mark.parametrize("what", ["numbers", "step_numbers"])
def test_the_kernels_compute_what_the_formulas_do(what: str, tmp_path: Path) -> None:
    own = {"TRITON_INTERPRET": "1", "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [str(environment.python()), "-m", "tests.trainer.triton_checks", what],
        env={**os.environ, **own, "PYTHONPATH": str(environment.ROOT)},
        cwd=environment.ROOT, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
