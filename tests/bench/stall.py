"""What a checkpoint costs the training thread, against torch.save in that thread."""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import torch

from trainer.checkpoint import FileEntry, Manifest
from trainer.saver import Saver

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


def _ours(folder: Path, tensors: dict[str, torch.Tensor], step: int) -> tuple[float, float]:
    """(seconds the thread stood, seconds until durable)."""
    saver = _savers.setdefault(folder, Saver(folder, torch.device("cpu")))

    def describe(files: dict[str, FileEntry]) -> Manifest:
        return Manifest(
            run_id="bench", attempt=1, step=step, tokens_seen=0, parent=None, why="cadence",
            files=files, spec_sha256="", data_identity="", fingerprint={}, unix_seconds=0.0,
        )  # fmt: skip

    began = time.perf_counter()
    saver.begin(step, tensors, {}, {}, describe, "cadence")
    stall = time.perf_counter() - began
    (saved,) = saver.wait()
    if saved.error is not None:
        raise saved.error
    return stall, time.perf_counter() - began


_savers: dict[Path, Saver] = {}


def _plain(path: Path, tensors: dict[str, torch.Tensor]) -> float:
    began = time.perf_counter()
    torch.save(tensors, path)
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
