"""Runs independent work items in parallel on CPU cores, one thread per operation.

Operations on small matrices gain nothing from a second thread (at width 64, CORE took as long with
two as with one); two batches at once are faster.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")


def side_by_side(work: Callable[[T], R], items: Iterable[T], workers: int) -> Iterator[R]:
    """Yield `work(item)` for each, in order, with `workers` at once and one item queued.

    `work` runs in separate threads, where autograd is on. Restores torch's number of threads.
    """
    if workers == 1:
        yield from map(work, items)
        return
    before = torch.get_num_threads()
    pool = ThreadPoolExecutor(workers, "side-by-side", torch.set_num_threads, (1,))
    running: deque[Future[R]] = deque()
    try:
        for item in items:
            running.append(pool.submit(work, item))
            if len(running) > workers:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(before)  # threads started later inherit the last setting
