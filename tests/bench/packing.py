"""Best-fit packing, one thread, against the plain scan: `python -m tests.bench.packing`.

Documents have the lengths of web text (log-normal, median 500 tokens), rows 2,049 slots. Both put
existing tokens into rows; both give the same rows, which is checked.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import cycle, islice

import numpy as np

from tests.bench import bars
from tests.bench.compare import Contender, interleave
from tests.trainer.data import plain
from trainer.data.packing import Packer

ROW_SLOTS = 2049
ROWS = 32
PAIRS = 21
Documents = list[list[int]]


def main() -> None:
    for packing in ("best_fit", "lossless"):
        compare(packing)


def compare(packing: str) -> None:
    documents = web_documents(20_000)
    fast, slow = fast_rows(documents, packing), slow_rows(documents, packing)
    for ours, theirs in islice(zip(fast, slow, strict=False), 200):
        assert ours.tolist() == theirs
    comparison = interleave(
        Contender(lambda: [next(fast) for _ in range(ROWS)]),
        Contender(lambda: [next(slow) for _ in range(ROWS)]),
        warm_up=2,
        pairs=PAIRS,
    )
    rate = ROWS * (ROW_SLOTS - 1) / sorted(comparison.ours)[PAIRS // 2] / 1e6
    print(comparison.line(f"packing {packing}") + f"; ours {rate:.0f} M tok/s", flush=True)
    bars.at_least(f"packing {packing}, one thread", comparison.ratio, 25)


def web_documents(number: int) -> Documents:
    source = random.Random(7)
    lengths = [max(2, int(source.lognormvariate(6.2, 1.0))) for _ in range(number)]
    return [[source.randrange(32_768) for _ in range(n)] for n in lengths]


def fast_rows(documents: Documents, packing: str) -> Iterator[np.ndarray]:
    arrivals = cycle([np.array(d, dtype=np.uint16) for d in documents])
    numbers = iter(range(10**12))
    packer = Packer(
        lambda: list(islice(zip(numbers, arrivals, strict=False), 128)),
        "lossless" if packing == "lossless" else "best_fit",
    )
    while True:
        row = np.empty(ROW_SLOTS, dtype=np.uint32)
        packer.fill(row)
        yield row


def slow_rows(documents: Documents, packing: str) -> Iterator[list[int]]:
    arrivals = cycle(documents)
    batches = ((list(islice(arrivals, 128)), (0, 0, 1)) for _ in cycle([0]))
    for row, _ in plain.packed_rows(batches, ROW_SLOTS, lossless=packing == "lossless"):
        yield row


if __name__ == "__main__":
    main()
