"""`traind serve` as a process of its own, on loopback: started, waited for, ended."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx

READY_SECONDS = 90


class Serving:
    """A daemon whose data lie in directory/data and whose words in directory/daemon.log.

    environment: settings of its own; the port is a free one unless they say which.
    """

    command = (sys.executable, "-P", "-m", "server.cli.app", "serve")

    def __init__(self, directory: Path, **environment: str) -> None:
        self.data_dir = directory / "data"
        self.log = directory / "daemon.log"
        self.environment = {
            **os.environ,
            "TRAIND_DATA_DIR": str(self.data_dir),
            "TRAIND_PORT": "0",
            "OMP_NUM_THREADS": "1",
            **environment,
        }
        self.url = ""
        self.process: subprocess.Popen[bytes] = None  # type: ignore[assignment] - from `launch` on

    def launch(self) -> None:
        """Start the process, without waiting for it."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command, env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def wait_ready(self) -> str:
        """Its URL, once it answers that it is ready."""
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.log.read_text()
            try:
                told = json.loads((self.data_dir / "daemon.json").read_text())
                if told["pid"] == self.process.pid:
                    self.url = told["url"]
                    if httpx.get(f"{self.url}/readyz", timeout=5).status_code == 200:
                        return self.url
            except (OSError, ValueError, httpx.TransportError):
                pass
            time.sleep(0.02)
        raise AssertionError(f"never ready:\n{self.log.read_text()}")

    def kill(self) -> None:
        """kill -9, and gone."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(30)
