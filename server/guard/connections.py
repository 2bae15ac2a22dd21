"""How long a connection may say nothing, and how many there may be.

uvicorn waits for ever for the first request of a connection and for the rest of its headers; a page
full of idle sockets would take every descriptor of the process. Here each has its time.
"""

from __future__ import annotations

import asyncio
import resource
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

REQUEST_SECONDS = 30.0  # from the connection, or the last answer, to the end of the next headers
MAX_CONNECTIONS = 1024
WANTED_FILES = 8192


class Connection(H11Protocol):
    """HTTP/1.1 that closes what is idle or slow, and the longest idle when there are too many."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_request()
        if len(self.connections) > most_connections():
            self._longest_idle()._cut()

    def _longest_idle(self) -> Connection:
        """Who has waited longest for its next request; this one when all others are answering."""
        others = (c for c in self.connections if isinstance(c, Connection) and c is not self)
        waiting = [(c._deadline.when(), c) for c in others if c._deadline is not None]
        return min(waiting, key=lambda pair: pair[0], default=(0.0, self))[1]

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._is_answering():
            self._stop_waiting()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self._is_answering():  # the next request may have been there already
            self._await_request()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _await_request(self) -> None:
        self._stop_waiting()
        self._deadline = self.loop.call_later(REQUEST_SECONDS, self._give_up)

    def _stop_waiting(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _cut(self) -> None:
        self._stop_waiting()  # it may be asked about again before it is gone
        self.transport.abort()

    def _give_up(self) -> None:
        if not self.transport.is_closing():
            self.transport.close()


def most_connections() -> int:
    """So many that descriptors are left for the work itself."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return min(MAX_CONNECTIONS, files // 2)


def raise_file_limit() -> None:
    """As many open files as the system allows, up to what a busy daemon wants."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(WANTED_FILES, hard)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
