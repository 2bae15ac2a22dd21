"""Connection limits: idle timeouts and the number of open connections.

uvicorn waits forever for the first request of a connection, for the rest of its headers, and for a
client that does not read its answer; a page full of such sockets would take every descriptor of the
process. Here each has its time, and a newcomer the place of the least useful one.
"""

from __future__ import annotations

import asyncio
import resource
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

REQUEST_SECONDS = 30.0  # from the connection, or the last answer, to the end of the next headers
WRITE_SECONDS = 60.0  # for a full buffer to drain, which a slow line does and a dead client not
STREAM_SECONDS = 60.0  # an answer of this age makes room when all connections are answering
MAX_CONNECTIONS = 1_000
WANTED_FILES = 8192


class Connection(H11Protocol):
    """HTTP/1.1 that closes what is idle or slow, and the least useful one when they are many."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self._deadline: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None  # while the client does not read
        self._answering_since: float | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_request()
        if len(self.connections) > most_connections():
            self._least_useful()._cut()

    def _least_useful(self) -> Connection:
        """Who does not read for longest, or has waited longest for its next request, or asks
        without waiting for its answers, or gets the oldest of the long answers; this one when all
        others are answering again."""
        others = [c for c in self.connections if isinstance(c, Connection) and c is not self]
        for timer in ("_unread", "_deadline"):
            waiting = [(t.when(), c) for c in others if (t := getattr(c, timer)) is not None]
            if waiting:
                return min(waiting, key=lambda pair: pair[0])[1]
        before = self.loop.time() - STREAM_SECONDS
        long = [
            (since, c)
            for c in others
            if (since := c._answering_since) is not None and (c.flow.read_paused or since < before)
        ]
        return min(long, key=lambda pair: pair[0], default=(0.0, self))[1]

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._unread is None:
            self._unread = self.loop.call_later(WRITE_SECONDS, self._cut)

    def resume_writing(self) -> None:
        self._stop_counting()
        super().resume_writing()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._is_answering():
            self._answering_since = self._answering_since or self.loop.time()
            self._stop_waiting()

    def on_response_complete(self) -> None:
        self._answering_since = None
        super().on_response_complete()
        if self._is_answering():  # the next request was there already
            self._answering_since = self.loop.time()
        else:
            self._await_request()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        self._stop_counting()
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

    def _stop_counting(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def _cut(self) -> None:
        self._stop_waiting()  # it may be asked about again before it is gone
        self._stop_counting()
        self._answering_since = None
        self.transport.abort()

    def timeout_keep_alive_handler(self) -> None:
        self._give_up()

    def _give_up(self) -> None:
        """Close it; a close waits for the client to read what is left, which may never be."""
        if self.transport.is_closing() or self.transport.get_write_buffer_size():
            self.transport.abort()
        else:
            self.transport.close()


def most_connections() -> int:
    """So many that descriptors are left for the work itself."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return min(MAX_CONNECTIONS, files // 2)


def raise_file_limit() -> None:
    """Raise the limit of open files as far as the system allows and a busy daemon needs."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(WANTED_FILES, hard)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
