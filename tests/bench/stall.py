"""Cost of a checkpoint for the training thread, against torch.save in that thread."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from tests.bench import bars, compare, memory, training
from trainer.checkpoint.background_writer import Saver
from trainer.checkpoint.store import FileEntry, Manifest

GIGABYTES = 0.5
SAVES = 6


def main() -> None:
    count = int(GIGABYTES * 1e9 / 4 / 16)
    tensors = {f"t{i}": torch.randn(count) for i in range(16)}
    size = sum(t.numel() * 4 for t in tensors.values()) / 1e9
    with tempfile.TemporaryDirectory() as folder:
        ours = [_ours(Path(folder) / "ours", tensors, i) for i in range(SAVES)]
        plain = [_plain(Path(folder) / "plain.pt", tensors) for _ in range(SAVES)]
    first, stall = ours[0][0] / size, statistics.median(s for s, _ in ours[1:]) / size
    durable = statistics.median(d for _, d in ours[1:]) / size
    print(
        f"checkpoint stall: {stall:.3f} s/GB (first {first:.3f}); durable and verified after "
        f"{durable:.2f} s/GB; torch.save stalls {statistics.median(plain) / size:.2f} s/GB: "
        f"{statistics.median(plain) / size / stall:.0f}x"
    )
    bars.at_most("stall of a checkpoint", stall, 0.12, "s/GB")
    extra, slowed = _beside_training()
    print(f"while one is written: memory +{extra:.2f}x the state, steps {slowed:.2f}x as long")


def _beside_training() -> tuple[float, float]:
    """(peak memory beyond the model's in multiples of the state, a step's time beside a save)."""
    step = training.ours(training.cpu_spec(8192, 4, 1), compile=False)
    step()
    tensors = {f"t{i}": torch.randn(8_000_000) for i in range(16)}
    size = sum(t.numel() * 4 for t in tensors.values())
    with tempfile.TemporaryDirectory() as folder:
        saver = Saver(Path(folder), torch.device("cpu"))
        alone, beside = [], []
        before = memory.resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
        for turn in range(3):
            alone += [compare.seconds(step) for _ in range(3)]
            saver.begin(turn, tensors, {}, {}, _manifest(turn), "cadence")
            while saver.busy:
                beside.append(compare.seconds(step))
            saver.wait()
    peak = memory.resident("VmHWM") - before
    return peak / size, statistics.median(beside) / statistics.median(alone)


def _ours(folder: Path, tensors: dict[str, torch.Tensor], step: int) -> tuple[float, float]:
    """(seconds the training thread was blocked, seconds until durable)."""
    saver = _savers.setdefault(folder, Saver(folder, torch.device("cpu")))

    began = time.perf_counter()
    saver.begin(step, tensors, {}, {}, _manifest(step), "cadence")
    stall = time.perf_counter() - began
    (saved,) = saver.wait()
    if saved.error is not None:
        raise saved.error
    return stall, time.perf_counter() - began


def _manifest(step: int) -> Callable[[dict[str, FileEntry]], Manifest]:
    def describe(files: dict[str, FileEntry]) -> Manifest:
        return Manifest(
            run_id="bench", attempt=1, step=step, tokens_seen=0, parent=None, why="cadence",
            files=files, spec_sha256="", data_identity="", fingerprint={}, unix_seconds=0.0,
        )  # fmt: skip

    return describe


_savers: dict[Path, Saver] = {}


def _plain(path: Path, tensors: dict[str, torch.Tensor]) -> float:
    began = time.perf_counter()
    torch.save(tensors, path)
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
