"""Start a run, wait for it, extend it and print its report.

traind serve &
python examples/client.py
"""

from __future__ import annotations

import time

from server.client import Client

SPEC = {
    "name": "from-python",
    "model": {
        "depth": 2,
        "aspect_ratio": 16,
        "head_dim": 16,
        "sequence_len": 64,
        "vocab_size": 512,
    },
    "batch": {"tokens": 1024, "device_batch_size": 16},
    "horizon": {"steps": 200},
    "evaluate": {"bpb_every": 100, "eval_tokens": 8192},
}


def main() -> None:
    with Client() as traind:
        traind.create_run(SPEC)
        follow(traind, "from-python")
        traind.extend("from-python", {"to_step": 300})
        follow(traind, "from-python")
        print(traind.report("from-python"))


def follow(traind: Client, run: str) -> None:
    """Print the progress of `run` until it has ended."""
    while True:
        progress = traind.progress(run)
        print(f"{progress.state} {progress.step:,}/{progress.end_step:,} loss {progress.loss}")
        if progress.state in ("completed", "failed", "cancelled", "paused"):
            return
        time.sleep(2)


if __name__ == "__main__":
    main()
