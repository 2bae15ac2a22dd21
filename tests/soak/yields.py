"""Yields: a run that yields at random times, by its device's hours, ends with its twin's bits."""

from __future__ import annotations

import hashlib
import random
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

from tests.e2e.real_daemon import TINY, RealDaemon
from tests.soak.counts import Budget, Counts
from tests.soak.weights import reseal
from trainer.checkpoint import store

YIELDS_PER_RUN = 25
STEPS = 160
SPEC = {**TINY, "horizon": {"steps": STEPS}, "checkpoint": {"every_steps": 40}}
SECONDS = 90.0  # time for a run to yield, or to resume training


def run(budget: float, seed: int) -> Counts:
    """One run after another, until the time is up; each must end, however often it yields."""
    counts, left = Counts("yields", seed), Budget(budget)
    draw = random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="soak-yields-") as folder:
        daemon = RealDaemon(Path(folder))
        try:
            twin = _twin(daemon)
            number = 0
            while left.has_more():
                _one_run(daemon, counts, draw, f"run-{number}", left, twin)
                number += 1
        finally:
            daemon.end()
    return counts


def control(seed: int) -> Counts:
    """The same with the optimizer's state of one checkpoint altered while the run waits."""
    counts = Counts("yields", seed)
    with tempfile.TemporaryDirectory(prefix="soak-yields-") as folder:
        daemon = RealDaemon(Path(folder))
        try:
            twin = _twin(daemon)
            _start(daemon, "altered")
            _make_way(daemon, "altered", 10)
            _alter(_checkpoints(daemon, "altered")[-1])
            daemon.client.put_policy("cpu", {})
            _compare(daemon, counts, "altered", twin)
        finally:
            daemon.end()
    return counts


def _twin(daemon: RealDaemon) -> str:
    _start(daemon, "twin")
    daemon.until_state("twin", "completed")
    return _weights(daemon, "twin")


def _one_run(
    daemon: RealDaemon, counts: Counts, draw: random.Random, name: str, left: Budget, twin: str
) -> None:
    _start(daemon, name)
    for _ in range(YIELDS_PER_RUN):
        reached = _make_way(daemon, name, draw.randrange(1, 25))
        if reached is None:
            break
        counts.add("yields")
        counts.say(f"{name} yielded at step {reached}")
        daemon.client.put_policy("cpu", {})
        if left.is_over:
            break
    _compare(daemon, counts, name, twin)
    counts.add("runs")


def _start(daemon: RealDaemon, name: str) -> None:
    daemon.client.create_run({"name": name, **SPEC})


def _make_way(daemon: RealDaemon, name: str, steps: int) -> int | None:
    """Close the device's hours once the run has done some steps of an attempt, and wait until it
    has yielded. Returns the step at which it did; None if it had ended before."""
    begun = daemon.client.progress(name).step
    now = daemon.until(
        name, lambda p: p.state == "completed" or p.step >= begun + steps, seconds=SECONDS
    )
    if now.state == "completed":
        return None
    daemon.client.put_policy("cpu", {"hours": [_shut()]})
    gone = daemon.until_state(name, "queued", "completed", seconds=SECONDS)
    if gone.state == "completed":
        daemon.client.put_policy("cpu", {})
        return None
    return gone.step


def _shut() -> dict[str, object]:
    """Hours that are not now: an hour in three days."""
    day = datetime.now(UTC) + timedelta(days=3)
    return {"days": [day.strftime("%a").lower()], "from": "00:00", "to": "01:00", "zone": "UTC"}


def _compare(daemon: RealDaemon, counts: Counts, name: str, twin: str) -> None:
    daemon.until_state(name, "completed", seconds=300)
    begun = [a for a in daemon.client.attempts(name) if a.start_step]
    # a run that yielded between its last step and its last evaluation has no more steps
    resumed = [a.exact_resume for a in begun if a.start_step != STEPS]
    counts.expect(set(resumed) <= {"verified"}, f"{name}: resumes were {resumed}")
    counts.expect(_weights(daemon, name) == twin, f"{name} is not its twin")


def _checkpoints(daemon: RealDaemon, name: str) -> list[Path]:
    run_id = daemon.client.run(name).id
    return sorted((daemon.data_dir / "runs" / run_id / "checkpoints").glob("step-*"))


def _weights(daemon: RealDaemon, name: str) -> str:
    """sha256 over model and optimizer of the last checkpoint."""
    last = _checkpoints(daemon, name)[-1]
    files = store.read_manifest(last).files
    named = "".join(files[part].sha256 for part in (store.MODEL, store.OPTIMIZER))
    return hashlib.sha256(named.encode()).hexdigest()


def _alter(path: Path) -> None:
    """Replace one piece of the optimizer's state by zeros; valid in every other respect."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(path / store.OPTIMIZER)
    save_file({name: tensor * 0 for name, tensor in tensors.items()}, path / store.OPTIMIZER)
    reseal(path)
