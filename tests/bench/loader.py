"""Data loader: time the loop waits for data, and batch throughput: `python -m tests.bench.loader`.

The wait is measured at 1 M tok/s: micro-batches of 8 x 2,048 tokens, 16.4 ms apart. In between the
loop is busy without the interpreter lock, or asleep (then 5 us of each wait are the processor's
wake-up, with or without a loader). The opponent tokenizes and packs in the loop.
"""

from __future__ import annotations

import hashlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from tests.bench import bars
from tests.bench.compare import Contender, interleave
from tests.trainer.data import plain
from trainer.contract.spec import DataSpec
from trainer.data import tokenizer as tokenizers
from trainer.data.loader import Loader, open_loader
from trainer.data.parquet import TextFile
from trainer.data.prepare import PreparedData, prepare

ROWS, SEQUENCE_LEN = 8, 2048
TOKENS_PER_SECOND = 1e6
MICRO_BATCHES_PER_STEP = 4
STEPS = 60
_BALLAST = bytes(500_000)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        data = prepare(DataSpec(), data_dir=Path(folder), vocab_size=4096, tokens_needed=1)
        lines = [f"prepare built-in corpus, vocabulary 4,096: {time.perf_counter() - began:.1f} s"]
        began = time.perf_counter()
        prepare(DataSpec(), data_dir=Path(folder), vocab_size=4096, tokens_needed=1)
        lines.append(f"prepare again: {time.perf_counter() - began:.2f} s")
        lines += [wait(data, "busy", _busy), wait(data, "asleep", time.sleep), throughput(data)]
    print("\n".join(lines))


def wait(data: PreparedData, name: str, pass_time: Callable[[float], object]) -> str:
    with open_loader(data, split="train", rows=ROWS, sequence_len=SEQUENCE_LEN) as loader:
        shares = [_waited_share(loader, pass_time) for _ in range(STEPS + 5)][5:]
    low, middle, high = (f"{100 * q:.4f} %" for q in statistics.quantiles(shares, n=4))
    mean = f"{100 * statistics.fmean(shares):.4f} %"
    share = 100 * statistics.median(shares)
    bars.at_most(f"loader wait at 1 M tok/s, {name}", share, 0.1, "% of a step")
    return (
        f"loader wait at 1 M tok/s, {name}: {middle} of a step (quartiles {low} to {high}, "
        f"mean {mean})"
    )


def _waited_share(loader: Loader, pass_time: Callable[[float], object]) -> float:
    """Share of waiting in the time of a step of four micro-batches."""
    before = loader.waited_seconds
    for _ in range(MICRO_BATCHES_PER_STEP):
        loader.next_batch()
        pass_time(ROWS * SEQUENCE_LEN / TOKENS_PER_SECOND)
    return (loader.waited_seconds - before) / (
        MICRO_BATCHES_PER_STEP * ROWS * SEQUENCE_LEN / TOKENS_PER_SECOND
    )


def _busy(seconds: float) -> None:
    """Hash for a while: works outside of the interpreter lock, like the step."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        hashlib.sha256(_BALLAST)


def throughput(data: PreparedData) -> str:
    slow = _plain_batches(data)
    settings = {"split": "train", "rows": ROWS, "sequence_len": SEQUENCE_LEN, "prefetch": 0}
    with open_loader(data, **settings) as loader:
        assert np.array_equal(loader.next_batch().inputs_BT, next(slow)[:, :-1])
        comparison = interleave(
            Contender(loader.next_batch), Contender(lambda: next(slow)), warm_up=10, pairs=101
        )
    rate = ROWS * SEQUENCE_LEN / statistics.median(comparison.ours) / 1e6
    return comparison.line("making a batch") + f"; ours {rate:.1f} M tok/s on one thread"


def _plain_batches(data: PreparedData) -> Iterator[np.ndarray]:
    rows = plain.packed_rows(_plain_documents(data), SEQUENCE_LEN + 1)
    while True:
        yield np.array([next(rows)[0] for _ in range(ROWS)])


def _plain_documents(data: PreparedData) -> Iterator[tuple[list[list[int]], plain.Origin]]:
    tokenizer = tokenizers.load(data.tokenizer_dir)
    while True:
        for number, file in enumerate(data.train_files):
            text = TextFile(file.path)
            for group in range(text.num_row_groups):
                texts = text.texts(group)
                for start in range(0, len(texts), 128):
                    chunk = texts[start : start + 128]
                    ids = [[tokenizer.bos_id, *tokenizer.encode_ordinary(t)] for t in chunk]
                    yield ids, (number, group, 1)


if __name__ == "__main__":
    main()
