"""Saving without stopping: copy to host memory, write in a background thread.

The copy is all that the training thread waits for; on CUDA it runs on a side stream beneath the
next forward pass and only the next update waits for it. Two saves never overlap. Host buffers are
kept between saves: on the CPU, first-touch page faults cost four times the copy itself. There the
copy is made by several threads of our own, each with its pieces: torch's share out one tensor after
the other, and wait for each other every time (two: 0.15 s/GB, ours 0.11).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainer.checkpoint import store
from trainer.checkpoint.store import FileEntry, Manifest, Snapshot

PIECE_BYTES = 16 << 20


@dataclass(frozen=True)
class Saved:
    """How a save ended: `path` and `manifest`, or `error`."""

    snapshot_step: int
    why: str
    seconds: float
    stall_seconds: float
    bytes: int
    path: Path | None = None
    manifest: Manifest | None = None
    error: BaseException | None = None


class Saver:
    """Writes checkpoints of one attempt below `directory`."""

    def __init__(self, directory: Path, device: torch.device) -> None:
        self._directory, self._device = directory, device
        self._buffers: dict[str, Tensor] = {}
        self._thread: threading.Thread | None = None
        self._done: list[Saved] = []
        self._copied: Any = None
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    @property
    def busy(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def begin(
        self,
        step: int,
        model: Mapping[str, Tensor],
        optimizer: Mapping[str, Tensor],
        state: dict[str, Any],
        describe: Callable[[dict[str, FileEntry]], Manifest],
        why: str,
    ) -> None:
        """Take the snapshot and start writing. The caller sees to it that no save is under way."""
        if self.busy:
            raise RuntimeError("a save is still under way: two saves never overlap")
        started = time.perf_counter()
        snapshot = self._snapshot(step, model, optimizer, state)
        stall = time.perf_counter() - started
        self._thread = threading.Thread(
            target=self._write, args=(snapshot, describe, why, stall), name="checkpoint-writer"
        )
        self._thread.start()

    def fence_update(self) -> None:
        """Make the device's next update wait for the copy; a no-op when there is none."""
        if self._copied is not None:
            torch.cuda.current_stream(self._device).wait_event(self._copied)
            self._copied = None

    def collect(self) -> list[Saved]:
        """The saves that ended since the last call; never waits."""
        if self._thread is None or self._thread.is_alive():
            return []
        self._thread.join()
        self._thread = None
        done, self._done = self._done, []
        return done

    def wait(self) -> list[Saved]:
        """Wait for the save in flight and return what ended."""
        if self._thread is not None:
            self._thread.join()
        return self.collect()

    def _snapshot(
        self,
        step: int,
        model: Mapping[str, Tensor],
        optimizer: Mapping[str, Tensor],
        state: dict[str, Any],
    ) -> Snapshot:
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(self._device))
            with torch.cuda.stream(self._stream):
                copies = (self._copy("m.", model), self._copy("o.", optimizer))
            self._copied = self._stream.record_event()
        else:
            copies = (self._copy("m.", model), self._copy("o.", optimizer))
        return Snapshot(step, *copies, state)

    def _copy(self, prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        copies = {name: self._buffer(prefix + name, t) for name, t in tensors.items()}
        pairs = [(copies[name], t.detach()) for name, t in tensors.items()]
        if self._device.type == "cpu":
            _copy_in_shares(pairs)
        else:
            for buffer, tensor in pairs:  # only a copy on a stream of ours is waited for later
                buffer.copy_(tensor, non_blocking=self._stream is not None)
        return copies

    def _buffer(self, key: str, tensor: Tensor) -> Tensor:
        buffer = self._buffers.get(key)
        if buffer is None or buffer.shape != tensor.shape or buffer.dtype != tensor.dtype:
            pinned = self._device.type == "cuda"
            buffer = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=pinned)
            self._buffers[key] = buffer
        return buffer

    def _write(
        self,
        snapshot: Snapshot,
        describe: Callable[[dict[str, FileEntry]], Manifest],
        why: str,
        stall: float,
    ) -> None:
        started = time.perf_counter()
        path = manifest = error = None
        try:
            if self._stream is not None:
                self._stream.synchronize()
            path, manifest = store.write(self._directory, snapshot, describe)
            _read_back(path)
        except Exception as caught:  # reported by the loop: the last good one is untouched
            path, error = None, caught
        self._done.append(
            Saved(
                snapshot_step=snapshot.step,
                why=why,
                seconds=time.perf_counter() - started,
                stall_seconds=stall,
                bytes=snapshot.bytes,
                path=path,
                manifest=manifest,
                error=error,
            )
        )


def _copy_in_shares(pairs: list[tuple[Tensor, Tensor]]) -> None:
    """Copies (to, from) in host memory: as many threads as training has, each with its share."""
    pieces: list[tuple[np.ndarray, np.ndarray]] = []
    for buffer, tensor in pairs:
        to, source = (t.contiguous().view(-1).view(torch.uint8).numpy() for t in (buffer, tensor))
        for start in range(0, len(to), PIECE_BYTES):
            pieces.append((to[start:][:PIECE_BYTES], source[start:][:PIECE_BYTES]))
    shares = [pieces[i :: torch.get_num_threads()] for i in range(torch.get_num_threads())]
    with ThreadPoolExecutor(len(shares), "checkpoint-copy") as threads:
        list(threads.map(_copy_share, shares))  # raises what one raised


def _copy_share(pieces: list[tuple[np.ndarray, np.ndarray]]) -> None:
    for to, source in pieces:
        np.copyto(to, source)  # without the interpreter's lock


def _read_back(path: Path) -> None:
    """Only a checkpoint that verifies may replace others; one that does not is taken away."""
    try:
        store.verify(path)
    except store.Bad:
        store.remove(path)
        raise
