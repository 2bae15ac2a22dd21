"""Out of memory at each stage of a run, in the daemon: the reported reason and what is kept."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from server.schemas.progress import Progress
from tests.nullgpu import environment, full_card
from tests.nullgpu.test_daemon import NullDaemon

pytestmark = [pytest.mark.needs("nullgpu"), pytest.mark.timeout(600)]

FULL_AT = {
    "1": ["evaluation", "sample", "save", "next_loss"],
    "2": ["start"],
    "3": ["step"],
}
# large enough that a step needs far more than the rounding of allocations
SPEC: dict[str, Any] = {
    "name": "full",
    "model": {"depth": 2, "aspect_ratio": 192, "head_dim": 64, "sequence_len": 1024,
              "vocab_size": 512},
    "data": {"source": "builtin"},
    "batch": {"tokens": 16_384, "device_batch_size": 16},
    "horizon": {"steps": 60},
    "schedule": {"warmup_steps": 2, "warmdown_ratio": 0.05},
    "evaluate": {"bpb_every": 4, "eval_tokens": 16_384, "sample_every": 4, "prompts": ["def "],
                 "core_every": None},
    "checkpoint": {"every_steps": 1000, "keep_every": None, "every_seconds": None},
    "numerics": {"compile": False},
}  # fmt: skip


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory, holders: Path) -> Iterator[NullDaemon]:
    folder = tmp_path_factory.mktemp("full")
    python = environment.python()
    assert python is not None
    more = {
        "TRAIND_TRAINER_PYTHON": str(full_card.interpreter(folder, python)),
        "NULLGPU_FULL_AT": json.dumps(FULL_AT),
        "NULLGPU_PINNED_MB": "8",  # less than a checkpoint: copied all the same, with a notice
        "TRAIND_FAIL": "loop.step=delay(0.1)",  # long enough that a pause comes before the end
    }
    daemon = NullDaemon(folder, holders, "rtx4070", **more)
    yield daemon
    daemon.end()


def test_a_full_card_costs_what_has_no_room_and_never_a_checkpoint(daemon: NullDaemon) -> None:
    traind = daemon.client
    traind.create_run(SPEC)

    # evaluations, samples and saves: the run continues
    daemon.until("full", lambda now: now.step > 5)
    traind.save_checkpoint("full")
    # a checkpoint of the very step of the pause would need no next loss
    daemon.until("full", lambda now: (saved_at(now) or now.step) < now.step)
    traind.pause("full")
    paused = daemon.until_state("full", "paused")
    assert saved_at(paused) == paused.step
    told = codes(daemon)
    assert told.count("evaluation_out_of_memory") >= 2
    assert told.count("next_loss_missing") == 1
    assert told.count("host_memory_not_pinned") == 1
    assert "checkpoint_failed" not in told

    # no room for the model
    traind.resume("full")
    no_start = settled(daemon, attempt=2)
    assert (no_start.state, no_start.reason) == ("failed", "out_of_memory")
    assert saved_at(no_start) == paused.step

    # no room for a step
    traind.resume("full")
    no_step = settled(daemon, attempt=3)
    assert (no_step.state, no_step.reason) == ("failed", "out_of_memory")
    assert "device_batch_size" in (no_step.reason_message or "")
    assert (saved_at(no_step) or 0) >= paused.step

    # with free memory again, it runs to the end
    traind.resume("full")
    ended = settled(daemon, attempt=4)
    assert (ended.state, saved_at(ended)) == ("completed", 60)
    outcomes = [a.outcome for a in traind.attempts("full")]
    assert outcomes == ["paused", "failed", "failed", "completed"]


def settled(daemon: NullDaemon, attempt: int) -> Progress:
    """The progress once this attempt has ended, in any way."""
    deadline = time.monotonic() + 150
    while True:
        now = daemon.client.progress("full")
        if now.attempt == attempt and now.state in ("failed", "completed", "paused"):
            return now
        said = f"{now.state} in attempt {now.attempt}\n{daemon.client.logs('full')}"
        assert time.monotonic() < deadline, said
        time.sleep(0.05)


def saved_at(now: Progress) -> int | None:
    return now.last_checkpoint.step if now.last_checkpoint else None


def codes(daemon: NullDaemon) -> list[str]:
    return [event.kind for event in daemon.client.events("full", limit=500).data]
