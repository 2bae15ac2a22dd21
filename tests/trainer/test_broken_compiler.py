"""A compiler that is there and fails at the first step: the run continues without it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path


def test_a_run_whose_compiler_fails_trains_and_records_that_it_is_uncompiled(
    lab, tmp_path: Path
) -> None:
    run = lab("broken", numerics={"threads": 1, "compile": True})
    directory = run.order()
    broken = {"CXX": "/bin/false", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "inductor")}
    done = subprocess.run(
        [sys.executable, "-P", "-m", "trainer", str(directory)],
        env={**os.environ, "OMP_NUM_THREADS": "1", **broken},
        capture_output=True, timeout=120, check=False,
    )  # fmt: skip
    run.close_attempt(directory)
    assert done.returncode == 0, done.stderr.decode()
    stages = [event["stage"] for event in run.events("stage")]
    assert stages.index("compiling") < stages.index("training", stages.index("compiling"))
    (notice,) = [e for e in run.events("notice") if e["code"] == "compile_failed"]
    assert "overrides.compile" in notice["message"]
    manifests = [json.loads(f.read_text()) for f in run.run_dir.checkpoints.glob("*/manifest.json")]
    assert {m["fingerprint"]["compiled"] for m in manifests} == {False}
    assert json.loads((run.run_dir.root / "frozen.json").read_text())["compile"] is False
