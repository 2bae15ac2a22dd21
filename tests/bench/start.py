"""From nothing to the first step: the trainer's start on a run of depth 4, cold and warm."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from pathlib import Path

from tests.e2e.real_daemon import RealDaemon

BODY = {
    "model": {"depth": 4, "aspect_ratio": 16, "head_dim": 16, "sequence_len": 128,
              "vocab_size": 2048},
    "batch": {"tokens": 2048, "device_batch_size": 16},
    "horizon": {"steps": 3},
    "evaluate": {"bpb_every": None, "sample_every": None},
}  # fmt: skip


def main() -> None:
    folder = Path(tempfile.mkdtemp(prefix="traind-bench-"))
    daemon = RealDaemon(folder, TRAIND_TICK_SECONDS="0.25")
    try:
        first, again = _first(daemon), _again(daemon)
        print(f"daemon, first start to ready: {first:.2f} s; again {again:.2f} s")
        cold, warm = _first_step(daemon, "cold"), _first_step(daemon, "warm")
        print(f"POST to first step, corpus and tokenizer to make: {cold:.1f} s; again {warm:.1f} s")
    finally:
        daemon.end()
        shutil.rmtree(folder, ignore_errors=True)


def _first(daemon: RealDaemon) -> float:
    daemon.client.close()
    daemon.process.terminate()
    daemon.process.wait(30)
    shutil.rmtree(daemon.data_dir)
    return daemon.start()


def _again(daemon: RealDaemon) -> float:
    daemon.client.close()
    daemon.process.terminate()
    daemon.process.wait(30)
    return daemon.start()


def _first_step(daemon: RealDaemon, name: str) -> float:
    began = time.monotonic()
    daemon.client.create_run(json.loads(json.dumps({"name": name, **BODY})))
    daemon.until(name, lambda now: now.step >= 1)
    return time.monotonic() - began


if __name__ == "__main__":
    main()
