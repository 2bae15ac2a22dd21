"""The GPU day: the checks and measurements of traind on a GPU, most valuable first, in ten minutes.

    python -m tests.bench.gpu [--only step,memory] [--seconds 570] [--small] [--slow 4]

Each stage (`gpu_stages.py`) is a separate process: one that dies or hangs costs only its own time.
The first group runs in parallel, untimed; it also fills the compilers' caches for the second, whose
stages have the GPU exclusively. --small: a small model, to run every stage without timing, as on a
null GPU. Prints what each stage skipped or why it failed.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
# time limit of each, in seconds
TOGETHER = {"daemon": 215, "parity": 120, "resume": 200, "cards": 120, "warm": 200}
ALONE = {"step": 140, "memory": 40, "determinism": 60, "save": 45, "races": 75, "variants": 75}
MARGIN = 8  # seconds reserved for printing the results
LEAST = 15  # seconds below which no stage starts


def main() -> int:
    """Exit status 1 when a stage failed."""
    ask = argparse.ArgumentParser()
    ask.add_argument("--only", help="stages, by comma")
    ask.add_argument("--seconds", type=float, default=570)
    ask.add_argument("--small", action="store_true")
    ask.add_argument("--slow", type=float, default=1, help="each stage may take so many times more")
    asked = ask.parse_args()
    if not _has_card():
        print("there is no CUDA device here: nothing of a GPU was measured")
        return 0
    wanted = asked.only.split(",") if asked.only else ["card", *TOGETHER, *ALONE]
    with tempfile.TemporaryDirectory(prefix="gpu-day-") as folder:
        day = Day(Path(folder), asked.seconds, asked.small, asked.slow)
        if "card" in wanted:
            day.run({"card": 60})
        day.run({name: seconds for name, seconds in TOGETHER.items() if name in wanted})
        for name, seconds in ALONE.items():
            if name in wanted:
                day.run({name: seconds})
    return int(day.failed)


class Day:
    """The stages so far. seconds: of the whole day. slow: factor on the stages' time limits."""

    def __init__(self, folder: Path, seconds: float, small: bool, slow: float) -> None:
        self.folder, self.small, self.slow, self.failed = folder, small, slow, False
        self.began = time.monotonic()
        self.ends = self.began + seconds - MARGIN

    def run(self, stages: dict[str, int]) -> None:
        """Run these in parallel, each within its own time limit and the day's."""
        left = self.ends - time.monotonic()
        if stages and left < LEAST:
            print(f"{', '.join(stages)}: left out, {left:.0f} s are left", flush=True)
            return
        live = {name: (self._start(name), time.monotonic()) for name in stages}
        while live:
            for name, (process, began) in list(live.items()):
                now = time.monotonic()
                late = now - began > stages[name] * self.slow or now > self.ends
                if process.poll() is not None or late:
                    self._close(name, process)
                    del live[name]
            time.sleep(0.1)

    def _start(self, name: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-u", "-m", "tests.bench.gpu_stages", name]
        with self._log(name).open("wb") as log:
            return subprocess.Popen(
                [*command, *(["--small"] if self.small else [])],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=ROOT, start_new_session=True,
                env={**os.environ, **self._caches()},
            )  # fmt: skip

    def _caches(self) -> dict[str, str]:
        """Compiler caches shared by all stages of the day."""
        place = Path(tempfile.gettempdir()) / "traind-gpu-day"
        own = {"TORCHINDUCTOR_CACHE_DIR": "inductor", "TRITON_CACHE_DIR": "triton"}
        return {key: os.environ.get(key, str(place / name)) for key, name in own.items()}

    def _close(self, name: str, process: subprocess.Popen[bytes]) -> None:
        ended = process.poll()
        if ended is None:
            os.killpg(process.pid, signal.SIGKILL)  # the group that this stage was started with
            process.wait()
        at = f"after {time.monotonic() - self.began:.0f} s"
        lines = self._log(name).read_text(errors="replace").splitlines()
        if ended == 0:
            found = [line.removeprefix("> ") for line in lines if line.startswith(("> ", "bar: "))]
            print(f"{name}, {at}:", *found, sep="\n", flush=True)
            return
        self.failed = True
        how = "stopped: its time was up" if ended is None else f"failed ({ended})"
        print(f"{name}, {at}: {how}", *lines[-25:], sep="\n", flush=True)

    def _log(self, name: str) -> Path:
        return self.folder / f"{name}.log"


def _has_card() -> bool:
    import torch

    return torch.cuda.is_available()


if __name__ == "__main__":
    sys.exit(main())
