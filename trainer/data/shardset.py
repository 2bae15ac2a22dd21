"""The open shards of a split: opened on use, the next one in advance, checked for changes."""

from __future__ import annotations

import concurrent.futures
import os
import subprocess
import threading
import time
from pathlib import Path
from typing import Literal

import numpy as np

from trainer.contract import units
from trainer.data import cache, helper_process, prepared
from trainer.data import tokenizer as tokenizers
from trainer.data.errors import DataChanged, DataError
from trainer.data.prepared import DataFile, PreparedData, verify_file
from trainer.data.shards import CachedShard, Shard

WAIT_SECONDS = 1800.0
RESTART_SECONDS = 10.0


class ShardSet:
    """Opens shards by index for the reader. Close it: it may own the process that builds ahead."""

    def __init__(self, prepared: PreparedData, split: Literal["train", "val"]) -> None:
        self.files = prepared.files(split)
        self._prepared = prepared
        self._tokenizer = tokenizers.load(prepared.tokenizer_dir)
        if self._tokenizer.sha256 != prepared.tokenizer_sha256:
            path = Path(prepared.tokenizer_dir) / tokenizers.FILE_NAME
            raise DataChanged(path, "is not the tokenizer this run was prepared with")
        self._open: dict[int, tuple[int, Shard]] = {}  # by stream
        self._stats: dict[int, tuple[int, int, int, int]] = {}
        self._opener = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="shards")
        self._ahead: tuple[int, concurrent.futures.Future[Shard]] | None = None
        self._builder: subprocess.Popen[bytes] | None = None
        self._builder_began = -RESTART_SECONDS
        self._cancelled = threading.Event()
        if split == "train" and any(self._is_missing(file) for file in self.files):
            self._start_builder()

    def open(self, index: int, stream: int = 0) -> Shard:
        """Open the shard that a stream reads. Raises DataChanged, DataError."""
        held, shard = self._open.get(stream, (None, None))
        if shard is None or held != index:
            shard = self._shared(index) or self._take_ahead(index) or self._fresh(index)
            self._open[stream] = index, shard  # documents still buffered keep older ones open
            self._prefetch(index)
        elif not isinstance(shard, CachedShard) and not self._is_missing(self.files[index]):
            shard = self._fresh(index)
            self._open[stream] = index, shard
        self._check_unchanged(index)
        return shard

    def _shared(self, index: int) -> Shard | None:
        """The shard, if another stream reads it already. Each stream has its own text file, which
        keeps the one row group it reads in memory."""
        for other, shard in self._open.values():
            if other == index and isinstance(shard, CachedShard):
                return shard
        return None

    def pick(self, index: int, documents: list[int]) -> list[np.ndarray]:
        """Single documents of any file, to restore a buffer."""
        return self._fresh(index).pick(documents)

    def cancel(self) -> None:
        """Make a wait for a download end, now and until `resume`."""
        self._cancelled.set()

    def resume(self) -> None:
        self._cancelled.clear()

    def close(self) -> None:
        self.cancel()
        self._opener.shutdown(wait=True, cancel_futures=True)
        self._open.clear()
        helper_process.end(self._builder)

    def _fresh(self, index: int) -> Shard:
        file = self.files[index]
        self._await_file(file)
        self._verify(file)
        return cache.open_shard(file, self._prepared.cache_dir, self._tokenizer)

    def _take_ahead(self, index: int) -> Shard | None:
        ahead, self._ahead = self._ahead, None
        return ahead[1].result() if ahead and ahead[0] == index else None

    def _prefetch(self, index: int) -> None:
        """Open and check the next file in the background: hashing 100 MB takes 0.1 s."""
        following = (index + 1) % len(self.files)
        file = self.files[following]
        if following != index and Path(file.path).exists() and not self._is_missing(file):
            self._ahead = (following, self._opener.submit(self._fresh, following))

    def _check_unchanged(self, index: int) -> None:
        """Check a file's stat at each row group: an edit pauses the run where it is read."""
        path = self.files[index].path
        try:
            stat = os.stat(path)
            seen = (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)
        except OSError:
            seen = (-1, -1, -1, -1)
        if self._stats.get(index) != seen:
            self._verify(self.files[index])
            self._stats[index] = seen

    def _verify(self, file: DataFile) -> None:
        """Verify a file; one downloaded after the preparation has no stat, so by its content."""
        verify_file(file, file.mtime_ns is None, self._prepared.corpora_dir)

    def _is_missing(self, file: DataFile) -> bool:
        return not cache.cache_path(self._prepared.cache_dir, file.text_sha256).exists()

    # --- files that are not downloaded yet -------------------------------------------------------

    def _await_file(self, file: DataFile) -> None:
        deadline = time.monotonic() + WAIT_SECONDS
        while file.remote is not None and not Path(file.path).exists():
            self._keep_builder()
            if time.monotonic() > deadline:
                raise DataError(
                    "download_failed",
                    f"{file.remote.name} did not arrive within {units.duration(WAIT_SECONDS)}"
                    f"{self._complaint()}",
                    file.path,
                )
            if self._cancelled.wait(cache.POLL_SECONDS):
                raise DataError("cancelled", f"no longer waiting for {file.remote.name}", file.path)

    def _complaint(self) -> str:
        try:
            return ": " + (Path(self._prepared.cache_dir) / cache.ERROR_FILE).read_text()
        except OSError:
            return ""

    def _keep_builder(self) -> None:
        """Start a builder if none runs, but not continually: another run's may be building."""
        gone = self._builder is None or self._builder.poll() is not None
        if gone and time.monotonic() - self._builder_began > RESTART_SECONDS:
            self._start_builder()

    def _start_builder(self) -> None:
        self._builder_began = time.monotonic()
        folder = Path(self._prepared.cache_dir)
        folder.mkdir(parents=True, exist_ok=True)  # a cache may be deleted at any time
        description = folder / f"ahead-{self._prepared.identity()[:16]}.json"
        prepared.store(description, self._prepared, self._prepared.corpora_dir.parent)
        self._builder = helper_process.start("trainer.data.cache", str(description))
