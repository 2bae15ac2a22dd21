"""Takeover: the run's lock passes from the trainer of an earlier attempt to that of the next.

The daemon starts an attempt when the previous one has ended, or when its node was presumed dead.
In that case the old trainer may still run and hold the lock until it sees that it is fenced off;
and a file server keeps the locks of a dead machine for a while, NFS for 90 s.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from trainer.checkpoint import fence
from trainer.contract.orders import AttemptOrder
from trainer.contract.rundir import Held, acquire

RUN_LOCK = "trainer.lock"
WAIT_SECONDS = 180.0  # twice the lease of NFS; the longest step of a trainer that still runs
POLL_SECONDS = 0.1


@contextmanager
def run_lock(order: AttemptOrder, while_waiting: Callable[[], None]) -> Iterator[None]:
    """Hold the lock of the order's run. If another trainer has it, fence it off and wait for it;
    `while_waiting` is called repeatedly meanwhile, and may raise.

    Raises Held if the lock is not released in time, Fenced if a newer attempt exists.
    """
    path = Path(order.run_dir) / RUN_LOCK
    try:
        fd = acquire(path, order.token)
    except Held:
        fence.refuse_if_succeeded(path.parent, order.attempt)
        fence.shut_out(path.parent, order.attempt)
        fd = _wait_for(path, order.token, while_waiting)
    try:
        yield
    finally:
        os.close(fd)


def _wait_for(path: Path, token: str, while_waiting: Callable[[], None]) -> int:
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        while_waiting()
        time.sleep(POLL_SECONDS)
        try:
            return acquire(path, token)
        except Held:
            if time.monotonic() >= deadline:
                raise
