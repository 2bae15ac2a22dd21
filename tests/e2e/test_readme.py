"""Every example in the README runs as it stands, in order, against a real daemon."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.real_daemon import RealDaemon

README = Path(__file__).parents[2] / "README.md"
# What these blocks promise is held elsewhere: the demo by test_cli_demo, `make test` by itself,
# `traind serve` by the daemon that all the others talk to.
ELSEWHERE = ("make demo", "traind serve")


def examples() -> list[str]:
    blocks = re.findall(r"^```sh\n(.*?)^```$", README.read_text(), re.M | re.S)
    return [block for block in blocks if not block.startswith(ELSEWHERE)]


def test_every_example_runs(tmp_path):
    assert len(examples()) >= 8
    daemon = RealDaemon(tmp_path)
    environment = {
        **daemon.environment,
        "TRAIND_URL": daemon.url,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "HOME": str(tmp_path),
    }
    try:
        for number, block in enumerate(examples()):
            script = block.replace("http://127.0.0.1:8321", daemon.url)
            if "extend" in script and "small" in script and "traind" not in script:
                daemon.until("small", lambda now: now.state == "completed" and now.step == 400)
            script = script.replace("curl -s ", "curl -s --fail-with-body ")
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", script],
                env=environment,
                cwd=tmp_path,
                capture_output=True,
                text=True,
                timeout=120,
            )
            assert done.returncode == 0, f"{number}: {script}\n{done.stdout}\n{done.stderr}"
            if "/pause" in script:
                daemon.until_state("small", "running", "completed", seconds=60)
    finally:
        daemon.end()


@pytest.mark.parametrize("target", ["setup", "demo", "serve", "test", "check", "soak", "bench"])
def test_the_make_targets_exist(target):
    assert shutil.which("make")
    done = subprocess.run(
        ["make", "--dry-run", target], cwd=README.parent, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
