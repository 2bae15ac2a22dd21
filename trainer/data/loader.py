"""Batches of token rows with an exact cursor, fetched ahead by a thread.

A batch is a pure function of (data, tokenizer, settings, cursor). The thread runs ahead, so each
batch carries the state after itself: the loader's cursor is that of the batch handed out last.
"""

from __future__ import annotations

import hashlib
import queue
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from trainer.data import cursor as cursors
from trainer.data.cursor import Snapshot, skip_to_row_group
from trainer.data.packing import Packer, Packing, Remainder
from trainer.data.prepared import PreparedData
from trainer.data.reader import LastRead, Position, Reader, arrival_number
from trainer.data.shardset import ShardSet

__all__ = ["Batch", "Loader", "nanochat_position", "open_loader", "skip_to_row_group"]

PREFETCH_BATCHES = 16


@dataclass(frozen=True)
class Batch:
    """`tokens_2BT` int64 holds inputs and targets in one block, pinned if the loader pins.

    `sha256` is that of the rows (B, T+1) as little-endian uint32: it names the batch's content.
    """

    tokens_2BT: np.ndarray
    sha256: str
    snapshot: Snapshot

    @property
    def inputs_BT(self) -> np.ndarray:
        return self.tokens_2BT[0]

    @property
    def targets_BT(self) -> np.ndarray:
        return self.tokens_2BT[1]

    @property
    def cursor(self) -> dict[str, Any]:
        """The cursor after this batch."""
        return self.snapshot.cursor()


def open_loader(
    prepared: PreparedData,
    *,
    split: Literal["train", "val"],
    rows: int,
    sequence_len: int,
    packing: Packing = "best_fit",
    cursor: dict[str, Any] | None = None,
    rank: int = 0,
    world: int = 1,
    prefetch: int = PREFETCH_BATCHES,
    pin: bool = False,
) -> Loader:
    """Batches of `rows` x `sequence_len` from the cursor on (default: the beginning).

    Raises DataError, DataChanged, here or at the batch where the trouble lies. Close it.
    """
    return Loader(prepared, split, rows, sequence_len, packing, cursor, rank, world, prefetch, pin)


class Loader:
    """An endless sequence of batches; see `open_loader`."""

    def __init__(
        self,
        prepared: PreparedData,
        split: Literal["train", "val"],
        rows: int,
        sequence_len: int,
        packing: Packing,
        cursor: dict[str, Any] | None,
        rank: int,
        world: int,
        prefetch: int,
        pin: bool,
    ) -> None:
        self._settings = (rows, sequence_len, packing, rank, world, pin)
        self._prefetch = prefetch
        self._shards = ShardSet(prepared, split)
        self.waited_seconds = 0.0
        try:
            self._start(cursor or cursors.first_cursor(packing, rank, world))
        except BaseException:
            self._shards.close()
            raise

    def next_batch(self, timeout: float | None = None) -> Batch:
        """The next batch. Raises what the thread met, after all batches before it are taken.

        With a timeout in seconds, TimeoutError where none is ready by then (a download may be
        under way); asking again is right.
        """
        before = time.perf_counter()
        batch = self._source.next(timeout)
        self.waited_seconds += time.perf_counter() - before
        self._state = batch.snapshot
        return batch

    def state_dict(self) -> dict[str, Any]:
        """The cursor after the batch handed out last (JSON)."""
        return self._state if isinstance(self._state, dict) else self._state.cursor()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a cursor; what was fetched ahead is dropped."""
        self._stop()
        self._start(state)

    def close(self) -> None:
        self._stop()
        self._shards.close()

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[Batch]:
        while True:
            yield self.next_batch()

    def _stop(self) -> None:
        self._shards.cancel()
        self._source.close()
        self._shards.resume()

    def _start(self, cursor: dict[str, Any]) -> None:
        rows, sequence_len, packing, rank, world, pin = self._settings
        cursors.check(cursor, packing, world, len(self._shards.files))
        maker = _Maker(self._shards, cursor, rows, sequence_len, packing, rank, world, pin)
        self._state: dict[str, Any] | Snapshot = cursor
        self._source = _Ahead(maker, self._prefetch) if self._prefetch else _Direct(maker)


class _Maker:
    """Makes one batch after another in the calling thread."""

    def __init__(
        self,
        shards: ShardSet,
        cursor: dict[str, Any],
        rows: int,
        sequence_len: int,
        packing: Packing,
        rank: int,
        world: int,
        pin: bool,
    ) -> None:
        self._shards, self._cursor = shards, cursor
        self._shape = (rows, sequence_len + 1)
        self._packing, self._world, self._pin = packing, world, pin
        position, last = Position(**cursor["position"]), LastRead(**cursor["last"])
        self._reader = Reader(shards.open, len(shards.files), position, last, rank, world)
        self._packer = Packer(self._reader.read, packing)
        self._rows = cursor["rows"]
        self._restored = False

    def make(self) -> Batch:
        if not self._restored:  # here, not in the constructor: it may have to tokenize
            self._restore()
        rows_BT1 = np.empty(self._shape, dtype=np.uint32)
        for row in rows_BT1:
            self._packer.fill(row)
        tokens_2BT = _empty((2, self._shape[0], self._shape[1] - 1), self._pin)
        tokens_2BT[0] = rows_BT1[:, :-1]
        tokens_2BT[1] = rows_BT1[:, 1:]
        self._rows += self._shape[0]
        digest = hashlib.sha256(rows_BT1.astype("<u4", copy=False).data).hexdigest()
        return Batch(tokens_2BT, digest, self._snapshot())

    def _restore(self) -> None:
        num_files = len(self._shards.files)
        for epoch, file, documents in self._cursor["buffer"]:
            numbers = [arrival_number(epoch, file, n, num_files) for n in documents]
            self._packer.add(zip(numbers, self._shards.pick(file, documents), strict=True))
        if self._cursor["remainder"] is not None:
            epoch, file, document, offset = self._cursor["remainder"]
            ids = self._shards.pick(file, [document])[0][offset:]
            number = arrival_number(epoch, file, document, num_files)
            self._packer.remainder = (number, offset, ids)
        self._restored = True

    def _snapshot(self) -> Snapshot:
        remainder: Remainder | None = self._packer.remainder
        return Snapshot(
            packing=self._packing,
            world=self._world,
            num_files=len(self._shards.files),
            position=self._reader.position,
            last=self._reader.last,
            keys=self._packer.buffered(),
            remainder=remainder,
            rows=self._rows,
        )


class _Direct:
    """No thread: every batch is made when it is asked for."""

    def __init__(self, maker: _Maker) -> None:
        self._maker = maker

    def next(self, timeout: float | None) -> Batch:
        return self._maker.make()

    def close(self) -> None:
        pass


class _Ahead:
    """A thread keeps up to `depth` batches ready.

    A thread and not a process: making a batch of 16,000 tokens takes the interpreter for a fraction
    of a millisecond, pinned memory needs no copy, and a killed trainer leaves nobody behind. It is
    woken once for half the depth, since waking it is all that taking a batch costs.
    """

    def __init__(self, maker: _Maker, depth: int) -> None:
        self._ready: queue.SimpleQueue[Batch | BaseException] = queue.SimpleQueue()
        self._orders: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._stopped = threading.Event()
        self._failure: BaseException | None = None
        self._order_size = max(1, depth // 2)
        self._taken = 0
        self._orders.put(depth)
        self._thread = threading.Thread(
            target=_keep_ready,
            args=(maker, self._ready, self._orders, self._stopped),
            name="loader",
            daemon=True,
        )
        self._thread.start()

    def next(self, timeout: float | None) -> Batch:
        if self._failure is not None:
            raise self._failure
        try:
            found = self._ready.get(timeout=timeout)
        except queue.Empty:
            raise TimeoutError(f"no batch was ready within {timeout} seconds") from None
        if isinstance(found, BaseException):
            self._failure = found
            raise found
        self._taken += 1
        if self._taken == self._order_size:
            self._orders.put(self._taken)
            self._taken = 0
        return found

    def close(self) -> None:
        self._stopped.set()
        self._orders.put(0)
        self._thread.join()


def _keep_ready(
    maker: _Maker,
    ready: queue.SimpleQueue[Batch | BaseException],
    orders: queue.SimpleQueue[int],
    stopped: threading.Event,
) -> None:
    while not stopped.is_set():
        for _ in range(orders.get()):
            if stopped.is_set():
                return
            try:
                ready.put(maker.make())
            except BaseException as error:  # handed to the loop, which raises it in its own time
                ready.put(error)
                return


def nanochat_position(
    prepared: PreparedData,
    cursor: dict[str, Any],
    *,
    rows: int,
    sequence_len: int,
    packing: Packing = "best_fit",
) -> dict[str, int]:
    """nanochat's `{pq_idx, rg_idx, epoch}` for a cursor of ours (one process).

    nanochat saves the position of the batch fetched one ahead, so that batch is made here.
    """
    with open_loader(
        prepared,
        split="train",
        rows=rows,
        sequence_len=sequence_len,
        packing=packing,
        cursor=cursor,
        prefetch=0,
    ) as loader:
        last = loader.next_batch().snapshot.last
    return {"pq_idx": last.pq_idx, "rg_idx": last.rg_idx, "epoch": last.epoch}


def _empty(shape: tuple[int, ...], pin: bool) -> np.ndarray:
    if not pin:
        return np.empty(shape, dtype=np.int64)
    import torch

    # the array keeps the tensor, and torch's allocator waits for copies under way before it
    # gives the block out again
    return torch.empty(shape, dtype=torch.int64, pin_memory=True).numpy()
