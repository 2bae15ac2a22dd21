"""`traind serve` as its user runs it: a process of its own, with the real trainer."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from server.client import Client
from server.schemas.progress import Progress
from tests.serving import Serving

SETTLED = ("created", "paused", "completed", "failed", "cancelled")
TINY: dict[str, Any] = {
    "model": {
        "depth": 2,
        "aspect_ratio": 16,
        "head_dim": 16,
        "sequence_len": 64,
        "vocab_size": 512,
    },
    "batch": {"tokens": 512, "device_batch_size": 8},
    "horizon": {"steps": 120},
    "evaluate": {
        "bpb_every": 60,
        "eval_tokens": 2048,
        "sample_every": 60,
        "prompts": ["def "],
    },
    "checkpoint": {"every_steps": 20},
    "numerics": {"threads": 1, "compile": False},
}


class RealDaemon(Serving):
    """Loopback, a free port, a data directory of its own."""

    def __init__(self, directory: Path, **environment: str) -> None:
        super().__init__(directory, **{"TRAIND_TICK_SECONDS": "0.1", **environment})
        self.client: Client = None  # type: ignore[assignment] - there from `start` on
        self.start()

    def start(self) -> float:
        """Start and wait until ready; the seconds it took."""
        began = time.monotonic()
        self.launch()
        self.wait_ready()
        if self.client is not None:
            self.client.close()
        self.client = Client(self.url, timeout_seconds=30.0)
        return time.monotonic() - began

    def until(
        self, run: str, reached: Callable[[Progress], bool], seconds: float = 150
    ) -> Progress:
        """The first progress that `reached` accepts; fails when the run fails or time is up."""
        deadline = time.monotonic() + seconds
        while True:
            now = self.client.progress(run)
            if reached(now):
                return now
            said = f"{now.state} at step {now.step}: {now.reason_message}"
            assert now.state != "failed", f"{said}\n{self.client.logs(run)}"
            assert time.monotonic() < deadline, said
            time.sleep(0.05)

    def until_state(self, run: str, *states: str, seconds: float = 150) -> Progress:
        return self.until(run, lambda now: now.state in states, seconds)

    def trainer_pid(self, run: str) -> int:
        """The pid of the run's live trainer."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            alive = [a for a in self.client.attempts(run) if a.ended_at is None and a.pid]
            if alive and alive[-1].pid:
                return alive[-1].pid
            time.sleep(0.02)
        raise AssertionError("no live trainer")

    def cancel_all(self) -> None:
        for run in self.client.runs():
            if run.state not in SETTLED:
                self.client.cancel(run.id)
                self.until_state(run.id, *SETTLED, seconds=60)

    def clear(self) -> None:
        """As if nothing had run: for the second try of a test."""
        self.cancel_all()
        for run in self.client.runs():
            self.client.delete_run(run.id)

    def end(self) -> None:
        """Cancel what still trains, stop, and see that nothing is left."""
        if self.process.poll() is not None:
            self.start()
        self.cancel_all()
        self.client.close()
        self.process.terminate()
        assert self.process.wait(60) == 0, self.log.read_text()
