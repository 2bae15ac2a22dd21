"""The data loader: batches of token rows with an exact cursor, prefetched by a thread.

A batch is a pure function of (data, tokenizer, settings, cursor). The thread runs ahead, so each
batch carries the state after it: the loader's cursor is that of the batch returned last.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from trainer.data import packed_rows
from trainer.data.cursor import skip_to_row_group
from trainer.data.packed_rows import PackedRows
from trainer.data.packing import Packing
from trainer.data.prepared import PreparedData
from trainer.data.streams import PackedDocuments, StreamsSnapshot

__all__ = ["Batch", "Loader", "nanochat_position", "open_loader", "skip_to_row_group"]

PREFETCH_BATCHES = 16


@dataclass(frozen=True)
class Batch:
    """A batch: `tokens_2BT` int64 holds inputs and targets in one block, pinned if the loader pins.

    `sha256` identifies the content: that of the rows (B, T+1) as little-endian uint32, or of
    inputs and targets of prepacked rows.
    """

    tokens_2BT: np.ndarray
    sha256: str
    snapshot: BatchPosition

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


class BatchPosition(Protocol):
    """Data position after a batch, cheap to take; `cursor()` converts it to JSON."""

    def cursor(self) -> dict[str, Any]: ...


class RowReader(Protocol):
    """Reads rows from a cursor on."""

    def fill(self, tokens_2BT: np.ndarray) -> tuple[str, BatchPosition]:
        """Fill inputs and targets; returns the content's sha256 and the position after it."""
        ...


class RowSource(Protocol):
    """Source of a loader's rows: documents packed on the fly, or prepacked rows."""

    def first_cursor(self) -> dict[str, Any]: ...

    def check(self, cursor: dict[str, Any]) -> None:
        """Raise DataError if a cursor cannot be continued from."""
        ...

    def begin(self, cursor: dict[str, Any]) -> RowReader: ...

    def cancel(self) -> None:
        """Make a wait for a download end, now and until `resume`."""
        ...

    def resume(self) -> None: ...

    def close(self) -> None: ...


def open_loader(
    prepared: PreparedData,
    *,
    split: Literal["train", "val"],
    rows: int,
    sequence_len: int,
    packing: Packing = "best_fit",
    streams: int = 1,
    cursor: dict[str, Any] | None = None,
    rank: int = 0,
    world: int = 1,
    prefetch: int = PREFETCH_BATCHES,
    pin: bool = False,
) -> Loader:
    """Open a loader of `rows` x `sequence_len` batches from the cursor on (default: the beginning).

    packing and streams are those of `streams.PackedDocuments`; prepacked rows have neither.
    Raises DataError, DataChanged, here or at the affected batch. Close it.
    """
    source: RowSource
    if prepared.source == packed_rows.SOURCE:
        source = PackedRows(prepared, split, sequence_len, rank, world)
    else:
        source = PackedDocuments(prepared, split, packing, streams, rank, world)
    return Loader(source, rows, sequence_len, cursor, prefetch, pin)


class Loader:
    """An endless sequence of batches; see `open_loader`."""

    def __init__(
        self,
        source: RowSource,
        rows: int,
        sequence_len: int,
        cursor: dict[str, Any] | None,
        prefetch: int,
        pin: bool,
    ) -> None:
        self._rows = source
        self._settings = (rows, sequence_len, pin)
        self._prefetch = prefetch
        self.waited_seconds = 0.0
        try:
            self._start(cursor or source.first_cursor())
        except BaseException:
            source.close()
            raise

    def next_batch(self, timeout: float | None = None) -> Batch:
        """The next batch. Raises the prefetch thread's error after all batches before it are taken.

        With a timeout in seconds, raises TimeoutError if none is ready by then (a download may
        be in progress); the call can be repeated.
        """
        before = time.perf_counter()
        batch = self._source.next(timeout)
        self.waited_seconds += time.perf_counter() - before
        self._state = batch.snapshot
        return batch

    def state_dict(self) -> dict[str, Any]:
        """The cursor after the batch returned last (JSON)."""
        return self._state if isinstance(self._state, dict) else self._state.cursor()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Move to a cursor; prefetched batches are dropped."""
        self._stop()
        self._start(state)

    def close(self) -> None:
        self._stop()
        self._rows.close()

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[Batch]:
        while True:
            yield self.next_batch()

    def _stop(self) -> None:
        self._rows.cancel()
        self._source.close()
        self._rows.resume()

    def _start(self, cursor: dict[str, Any]) -> None:
        self._rows.check(cursor)
        maker = _Maker(self._rows.begin(cursor), *self._settings)
        self._state: dict[str, Any] | BatchPosition = cursor
        self._source = _Ahead(maker, self._prefetch) if self._prefetch else _Direct(maker)


class _Maker:
    """Makes one batch after another in the calling thread."""

    def __init__(self, reader: RowReader, rows: int, sequence_len: int, pin: bool) -> None:
        self._reader = reader
        self._shape, self._pin = (2, rows, sequence_len), pin

    def make(self) -> Batch:
        tokens_2BT = _empty(self._shape, self._pin)
        digest, snapshot = self._reader.fill(tokens_2BT)
        return Batch(tokens_2BT, digest, snapshot)


class _Direct:
    """Makes each batch on request, without a thread."""

    def __init__(self, maker: _Maker) -> None:
        self._maker = maker

    def next(self, timeout: float | None) -> Batch:
        return self._maker.make()

    def close(self) -> None:
        pass


class _Ahead:
    """Prefetch thread that keeps up to `depth` batches ready.

    A thread and not a process: making a batch of 16,000 tokens holds the interpreter lock for a
    fraction of a millisecond, pinned memory needs no copy, and a killed trainer leaves no process
    behind. It is woken once per half the depth, since waking it is the only cost of taking a batch.
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
            except BaseException as error:  # raised later by next_batch
                ready.put(error)
                return


def nanochat_position(
    prepared: PreparedData,
    cursor: dict[str, Any],
    *,
    rows: int,
    sequence_len: int,
    packing: Packing = "best_fit",
    streams: int = 1,
) -> dict[str, int]:
    """nanochat's `{pq_idx, rg_idx, epoch}` for a traind cursor: its first process's position.

    nanochat saves the position of the batch fetched one ahead, so that batch is made here.
    """
    with open_loader(
        prepared,
        split="train",
        rows=rows,
        sequence_len=sequence_len,
        packing=packing,
        streams=streams,
        cursor=cursor,
        prefetch=0,
    ) as loader:
        ahead = [loader.next_batch().snapshot for _ in range(streams)][-1]
    assert isinstance(ahead, StreamsSnapshot)
    last = ahead.last
    return {"pq_idx": last.pq_idx, "rg_idx": last.rg_idx, "epoch": last.epoch}


def _empty(shape: tuple[int, ...], pin: bool) -> np.ndarray:
    if not pin:
        return np.empty(shape, dtype=np.int64)
    import torch

    # the array keeps the tensor. torch's allocator waits for a copy under way only where the copied
    # tensor begins with the block, as the inputs do and the targets do not: who launches a step
    # holds its batch until the device is done with it (loop.Pending)
    return torch.empty(shape, dtype=torch.int64, pin_memory=True).numpy()
