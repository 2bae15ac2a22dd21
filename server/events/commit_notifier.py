"""Wakes stream readers after a commit. It carries no data: each reader queries the database, so a
slow reader misses nothing and delays nobody.
"""

from __future__ import annotations

import asyncio
import threading

from server.errors import Busy

MAX_WAITERS = 2_000


class Feed:
    """A version that grows with each commit. `notify` may be called from any thread."""

    def __init__(self, max_waiters: int = MAX_WAITERS) -> None:
        self._lock = threading.Lock()
        self._version = 0
        self._max_waiters = max_waiters
        self._waiters: dict[asyncio.Future[None], asyncio.AbstractEventLoop] = {}

    @property
    def version(self) -> int:
        return self._version

    @property
    def num_waiting(self) -> int:
        return len(self._waiters)

    def notify(self) -> None:
        """Wake every waiter after a commit."""
        with self._lock:
            self._version += 1
            woken, self._waiters = self._waiters, {}
        for future, loop in woken.items():
            try:
                loop.call_soon_threadsafe(_wake, future)
            except RuntimeError:  # that loop has ended, and its readers with it
                continue

    async def wait(self, after_version: int, timeout: float) -> int:  # noqa: ASYNC109 - a deadline for nothing happening
        """The version as soon as it is above `after_version`, or after `timeout` seconds.

        Raises errors.Busy when too many wait already.
        """
        future = self._enter(after_version)
        if future is not None:
            try:
                await asyncio.wait_for(future, timeout)
            except TimeoutError:
                pass
            finally:
                with self._lock:
                    self._waiters.pop(future, None)
        return self._version

    def _enter(self, after_version: int) -> asyncio.Future[None] | None:
        loop = asyncio.get_running_loop()
        with self._lock:
            if self._version > after_version:
                return None
            if len(self._waiters) >= self._max_waiters:
                raise Busy(
                    f"{self._max_waiters:,} streams are open already.",
                    hint="Close some, then try again.",
                    headers={"Retry-After": "5"},
                )
            future: asyncio.Future[None] = loop.create_future()
            self._waiters[future] = loop
            return future


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
