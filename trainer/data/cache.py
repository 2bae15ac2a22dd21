"""Token cache: each file is tokenized once per tokenizer and kept within a size cap.

`python -m trainer.data.cache <data.json> [<parent pid>]` builds ahead in a separate process: it
downloads missing shards, tokenizes them, and exits when its parent exits. The loader waits for it
only when a download is missing: it tokenizes a shard that is not ready itself, with the same
result.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import fcntl
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from trainer.contract import durable
from trainer.data import hub, shards
from trainer.data import prepared as prepared_data
from trainer.data import tokenizer as tokenizers
from trainer.data.errors import DataError
from trainer.data.parquet import TextFile
from trainer.data.prepared import DataFile, PreparedData, verify_file
from trainer.data.shards import BadCache, CachedShard, LiveShard, Shard
from trainer.data.tokenizer import Tokenizer

DEFAULT_CAP_BYTES = 64_000_000_000
RECENT_SECONDS = 3600.0
BYTES_PER_TOKEN = 3.0  # a conservative guess, used only to make room before the count is known
ERROR_FILE = "builder-error.txt"
POLL_SECONDS = 0.2


def cache_path(cache_dir: str | Path, text_sha256: str) -> Path:
    """Path of the token cache file of a text."""
    return Path(cache_dir) / f"{text_sha256[:32]}.tokens"


def open_shard(
    file: DataFile, cache_dir: str | Path, tokenizer: Tokenizer, check: bool = True
) -> Shard:
    """The cached shard if it is complete, otherwise the text, tokenized as it is read."""
    path = cache_path(cache_dir, file.text_sha256)
    try:
        shard = CachedShard(path, tokenizer.sha256, file.text_sha256, check)
    except BadCache:
        path.unlink(missing_ok=True)
    except OSError:
        pass
    else:
        touch(path)
        return shard
    return LiveShard(file.path, tokenizer, column=file.column)


def build(
    files: Sequence[DataFile],
    cache_dir: Path,
    tokenizer: Tokenizer,
    cap_bytes: int = DEFAULT_CAP_BYTES,
    threads: int | None = None,
    progress: Callable[[float], None] = lambda fraction: None,
    stop: Callable[[], bool] = lambda: False,
    keep: Sequence[DataFile] = (),
) -> dict[str, int]:
    """Build missing cache files, in order. Returns the tokens of all cached files, by text_sha256.

    Neither `files` nor `keep` are deleted to make room. Stops early, without error, if the cap
    leaves no room. Raises DataError, DataChanged.
    """
    cache_dir.mkdir(parents=True, exist_ok=True)
    durable.sweep(cache_dir)
    kept = {cache_path(cache_dir, file.text_sha256) for file in [*files, *keep]}
    total, done = sum(file.size for file in files) or 1, 0
    tokens: dict[str, int] = {}
    with _Encoder(tokenizer, threads, stop) as encoder:
        for file in files:
            known = cached_tokens(file, cache_dir, tokenizer)
            if known is None:
                known = _build_one(file, cache_dir, tokenizer, cap_bytes, kept, encoder)
            if known is None:
                break
            tokens[file.text_sha256] = known
            done += file.size
            progress(done / total)
    return tokens


def cached_tokens(file: DataFile, cache_dir: Path, tokenizer: Tokenizer) -> int | None:
    """Number of tokens of a cached file, from its header alone; None if it is not cached."""
    try:
        header = shards.read_header(cache_path(cache_dir, file.text_sha256))
    except (BadCache, OSError):
        return None
    same = (header["tokenizer_sha256"], header["file_sha256"]) == (
        tokenizer.sha256,
        file.text_sha256,
    )
    return header["num_tokens"] if same else None


def touch(path: Path) -> None:
    """Mark a cache file as just used: eviction deletes the least recently used first."""
    with contextlib.suppress(OSError):
        os.utime(path)


def make_room(cache_dir: Path, needed: int, cap_bytes: int, keep: set[Path]) -> bool:
    """Evict the least recently used files of any tokenizer until `needed` bytes fit."""
    found = []
    for path in cache_dir.parent.glob("*/*.tokens"):
        try:
            stat = path.stat()
        except FileNotFoundError:
            continue
        found.append((stat.st_mtime, stat.st_size, path))
    total = sum(size for _, size, _ in found)
    for used, size, path in sorted(found):
        if total + needed <= cap_bytes:
            break
        if path not in keep and time.time() - used > RECENT_SECONDS:
            path.unlink(missing_ok=True)
            total -= size
    return total + needed <= cap_bytes


def _build_one(
    file: DataFile,
    cache_dir: Path,
    tokenizer: Tokenizer,
    cap_bytes: int,
    keep: set[Path],
    encoder: _Encoder,
) -> int | None:
    source = TextFile(file.path, file.column)
    try:
        needed = int(source.text_bytes / BYTES_PER_TOKEN * np.dtype(tokenizer.dtype).itemsize)
        if not make_room(cache_dir, needed, cap_bytes, keep):
            return None
        path = cache_path(cache_dir, file.text_sha256)
        return shards.write_shard(path, source, tokenizer, file.text_sha256, encoder)
    finally:
        source.close()


class _Encoder:
    """Encodes a row group on threads that live as long as the build."""

    def __init__(self, tokenizer: Tokenizer, threads: int | None, stop: Callable[[], bool]):
        self._tokenizer = tokenizer
        self._workers = threads or os.cpu_count() or 1
        self._stop = stop
        self._pool = concurrent.futures.ThreadPoolExecutor(self._workers)

    def __enter__(self) -> _Encoder:
        return self

    def __exit__(self, *exc: object) -> None:
        self._pool.shutdown()

    def __call__(self, texts: list[str]) -> list[np.ndarray]:
        if self._stop():
            raise BuildStopped
        share = max(1, -(-len(texts) // (4 * self._workers)))
        chunks = [texts[at : at + share] for at in range(0, len(texts), share)]
        return [ids for encoded in self._pool.map(self._encode, chunks) for ids in encoded]

    def _encode(self, texts: list[str]) -> list[np.ndarray]:
        return [self._tokenizer.encode_array(text, bos=True) for text in texts]


class BuildStopped(Exception):
    """The build of a token cache was stopped: its parent process has exited."""


# --- the process that builds ahead ---------------------------------------------------------------


def build_ahead(prepared: PreparedData, stop: Callable[[], bool], threads: int) -> None:
    """Fetch and tokenize the training files in order until all are done or the cap is reached.

    A download that fails is written to `builder-error.txt` for the loader that waits for it.
    """
    cache_dir = Path(prepared.cache_dir)
    tokenizer = tokenizers.load(prepared.tokenizer_dir)
    complaint = cache_dir / ERROR_FILE
    full = False
    for file in prepared.train_files:
        while not Path(file.path).exists():
            try:
                hub.fetch(file)
            except DataError as error:
                durable.write_shared(complaint, error.message.encode())
                if stop():
                    return
                time.sleep(5.0)
        complaint.unlink(missing_ok=True)
        verify_file(file)
        if not full:
            built = build(
                [file],
                cache_dir,
                tokenizer,
                prepared.cache_cap_bytes,
                threads,
                stop=stop,
                keep=prepared.train_files,
            )
            full = not built
        if stop():
            return


def lock_path(prepared: PreparedData) -> Path:
    return Path(prepared.cache_dir) / f"builder-{prepared.identity()[:16]}.lock"


def main(arguments: list[str]) -> int:
    """Run the builder, one per data and tokenizer; a second one exits at once."""
    description = Path(arguments[0]).absolute()
    prepared = prepared_data.read(description, description.parents[3])
    parent = int(arguments[1]) if len(arguments) > 1 else os.getppid()
    Path(prepared.cache_dir).mkdir(parents=True, exist_ok=True)
    with lock_path(prepared).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return 0
        os.nice(10)
        threads = max(1, (os.cpu_count() or 2) // 2)
        try:
            build_ahead(prepared, lambda: os.getppid() != parent, threads)
        except BuildStopped:
            pass
        except DataError as error:
            durable.write_shared(Path(prepared.cache_dir) / ERROR_FILE, error.message.encode())
            return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
