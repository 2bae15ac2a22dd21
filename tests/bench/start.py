"""Start-up time to the first compiled step: the trainer's process against the reference's.

Depth 12, narrow: compile time grows with depth, compute time does not matter. Cold: an empty
compiler cache. Warm: the cache of the cold start. traind's side is the complete trainer as the
daemon starts it (order, data, tokenizer, journal) up to the first step in the journal; the
reference builds its model and trains one step. `serving` measures the daemon's own start.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.bench import bars, training
from tests.trainer.lab import Lab, write_corpus
from trainer.contract.spec import resolve

DEADLINE_SECONDS = 400
BODY: dict[str, Any] = {
    "name": "bench",
    "model": {"depth": 12, "aspect_ratio": 16, "head_dim": 64, "sequence_len": 256,
              "vocab_size": 300},
    "batch": {"tokens": 1024, "device_batch_size": 4},
    "horizon": {"steps": 2},
    "evaluate": {"bpb_every": None, "sample_every": None},
    "checkpoint": {"every_steps": None, "every_seconds": None},
    "numerics": {"threads": 2, "compile": True},
}  # fmt: skip
LIMITS = {"cold": 0.6, "warm": 0.75}
PAIRS = {"cold": 1, "warm": 5}  # one warm start is 7 % off now and then


def main() -> None:
    if sys.argv[1:] == ["--opponent"]:
        training.opponent(resolve(BODY))()
        return
    with tempfile.TemporaryDirectory(prefix="traind-bench-") as folder:
        root = Path(folder)
        write_corpus(root / "corpus", shards=2)
        for name in LIMITS:  # the second time over, both caches are warm
            ratios = []
            for _ in range(PAIRS[name]):
                ours = _ours(root, _with_cache(root / "ours-cache"))
                theirs = _theirs(_with_cache(root / "their-cache"))
                print(f"{name} start to first step: ours {ours:.1f} s, opponent {theirs:.1f} s")
                ratios.append(ours / theirs)
            if len(ratios) > 1:
                low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
                print(f"{name} start: {middle:.2f} of the opponent's [{low:.2f}, {high:.2f}]")
            bars.at_most(f"start to first step, {name}", statistics.median(ratios), LIMITS[name])


def _with_cache(folder: Path) -> dict[str, str]:
    return {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(folder)}


def _ours(root: Path, environment: dict[str, str]) -> float:
    """Seconds from exec to the first step in the journal."""
    lab = Lab(Path(tempfile.mkdtemp(dir=root)), None, dict(BODY))  # type: ignore[arg-type]
    lab.prepare(root / "corpus")
    directory = lab.order()
    outbox = directory / "outbox.jsonl"
    began = time.perf_counter()
    with (directory / "trainer.log").open("wb") as log:
        trainer = subprocess.Popen(
            [sys.executable, "-P", "-m", "trainer", str(directory)],
            env=environment, stdout=log, stderr=log,
        )  # fmt: skip
    try:
        while not (outbox.exists() and b'"kind":"step"' in outbox.read_bytes()):
            if trainer.poll() is not None or time.perf_counter() - began > DEADLINE_SECONDS:
                raise RuntimeError((directory / "trainer.log").read_text())
            time.sleep(0.02)
        return time.perf_counter() - began
    finally:
        trainer.wait(60)


def _theirs(environment: dict[str, str]) -> float:
    """Seconds of a process that ends with its first step."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "tests.bench.start", "--opponent"]
    subprocess.run(command, env=environment, check=True, timeout=DEADLINE_SECONDS)
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
