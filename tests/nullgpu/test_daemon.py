"""The daemon on a null RTX 4070: the preset made for that GPU, with fewer steps, start to end."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from server.schemas.progress import Progress
from tests.e2e.real_daemon import RealDaemon
from tests.nullgpu import environment

pytestmark = [pytest.mark.needs("nullgpu"), pytest.mark.timeout(900)]

SHORT: dict[str, Any] = {
    "preset": "rtx4070-d12",
    "data": {"source": "builtin"},
    "horizon": {"steps": 30},
    "schedule": {"warmup_steps": 4},
    "evaluate": {
        "bpb_every": 15, "eval_tokens": 32_768, "sample_every": 15, "prompts": ["def "],
        "core_every": None,
    },
    "checkpoint": {"every_steps": 15, "keep_every": None, "every_seconds": None},
    "numerics": {"deterministic": True},
}  # fmt: skip


class NullDaemon(RealDaemon):
    """A daemon on a null GPU, which its trainers use too."""

    def __init__(self, directory: Path, holders: Path, card: str, **more: str) -> None:
        self.command = (str(environment.python()), "-P", "-m", "server.cli.app", "serve")
        super().__init__(directory, **environment.variables(card, holders, **more))

    def until(
        self, run: str, reached: Callable[[Progress], bool], seconds: float = 400
    ) -> Progress:
        """Wait for `reached`, with time for a cold compilation."""
        return super().until(run, reached, seconds)

    def held_by(self, owner: str) -> int:
        """GPU memory in bytes that NVML and the daemon report for this run."""
        (card,) = [d for d in self.client.system().devices if d.device == "cuda:0"]
        return card.memory_by_owner.get(owner, 0)


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory, holders: Path) -> Iterator[NullDaemon]:
    daemon = NullDaemon(tmp_path_factory.mktemp("daemon"), holders, "rtx4070")
    yield daemon
    daemon.end()


def test_trained_paused_resumed_killed_ended_and_extended(daemon):
    """Every way to leave the GPU saves a checkpoint, within 12 GB."""
    traind = daemon.client
    traind.create_run({"name": "d12", **SHORT})
    daemon.until("d12", lambda now: now.stage == "compiling")
    daemon.until("d12", lambda now: now.step >= 2)
    assert daemon.held_by("d12") > 5 << 30
    traind.pause("d12")
    paused = daemon.until_state("d12", "paused", seconds=400)
    assert paused.last_checkpoint is not None
    assert paused.last_checkpoint.step == paused.step
    assert daemon.held_by("d12") == 0

    traind.resume("d12")
    daemon.until("d12", lambda now: now.step > paused.step + 2 and now.stage == "training")
    os.kill(daemon.trainer_pid("d12"), signal.SIGKILL)
    daemon.until("d12", lambda now: now.attempt == 3 and now.stage == "training")
    traind.save_checkpoint("d12")
    ended = daemon.until_state("d12", "completed", seconds=400)
    assert ended.last_checkpoint is not None
    assert ended.last_checkpoint.step == 30
    assert {e.kind for e in traind.evaluations("d12")} >= {"bpb"}
    assert traind.samples("d12")

    traind.extend("d12", {"add_steps": 6})
    grown = daemon.until("d12", lambda now: now.state == "completed" and now.step == 36)
    assert grown.last_checkpoint is not None
    assert grown.last_checkpoint.step == 36
    assert grown.exact_resume == "verified"
    codes = [e.message for e in traind.events("d12", limit=500).data]
    assert not any("out of memory" in message for message in codes), codes
    outcomes = [a.outcome for a in traind.attempts("d12")]
    assert outcomes == ["paused", "crashed", "completed", "completed"]
