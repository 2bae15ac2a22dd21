"""The example programs run as they stand against a real daemon."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.e2e.real_daemon import RealDaemon

ROOT = Path(__file__).parents[2]


def test_the_python_client_starts_follows_and_extends_a_run(tmp_path: Path) -> None:
    daemon = RealDaemon(tmp_path)
    try:
        done = subprocess.run(
            [sys.executable, str(ROOT / "examples" / "client.py")],
            env={**daemon.environment, "TRAIND_URL": daemon.url, "PYTHONPATH": str(ROOT)},
            cwd=tmp_path, capture_output=True, text=True, timeout=110,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert "completed 300/300" in done.stdout
        assert "# from-python" in done.stdout
    finally:
        daemon.end()
