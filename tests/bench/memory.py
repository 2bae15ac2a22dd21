"""Peak memory of a step against the reference's: `python -m tests.bench.memory`.

Each side runs in a separate process. Measures the peak resident memory during steps after the first
two, minus the process's memory before it built the model.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import subprocess
import sys
from pathlib import Path

import torch

from tests.bench import bars, training
from trainer.contract.plan import PlanContext, make_plan

MEASURED_STEPS = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", choices=["ours", "opponent"])
    parser.add_argument("--vocab", type=int, default=32_768)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--accumulation", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    asked = parser.parse_args()
    if asked.side:
        print(json.dumps(measure(asked)))
        return
    found = {side: _run(side) for side in ("ours", "opponent")}
    ratio = found["ours"] / found["opponent"]
    print(
        f"peak memory, vocabulary {asked.vocab}, batch {asked.rows}: {ratio:.2f}x "
        f"(ours {found['ours'] / 1e6:.0f} MB, opponent {found['opponent'] / 1e6:.0f} MB)"
    )
    bars.at_most("peak memory of a step", ratio, 0.75)
    spec = training.cpu_spec(asked.vocab, asked.rows, asked.accumulation)
    planned = make_plan(spec, PlanContext(device_type="cpu")).memory
    counted = (planned.total - planned.overhead) / 1e6
    print(f"the plan's estimate, its overhead aside: {counted:.0f} MB")


def measure(asked: argparse.Namespace) -> int:
    """Bytes of resident memory at the peak beyond those at the start."""
    torch.set_num_threads(asked.threads)
    spec = training.cpu_spec(asked.vocab, asked.rows, asked.accumulation)
    before = resident("VmRSS")
    step = getattr(training, asked.side)(spec)
    for _ in range(2):
        step()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    for _ in range(MEASURED_STEPS):
        step()
    return resident("VmHWM") - before


def resident(key: str) -> int:
    """Bytes of this process: VmRSS now, VmHWM at the peak."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"{key} is not in /proc/self/status")


def _run(side: str) -> int:
    command = [sys.executable, "-m", "tests.bench.memory", *sys.argv[1:], "--side", side]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return json.loads(output.splitlines()[-1])


if __name__ == "__main__":
    main()
