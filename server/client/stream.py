"""Server-sent events (SSE) for the client: parses the stream and reconnects when it is lost.

Events carry the id of their database row. A new connection resumes after the last id seen
(Last-Event-ID), so a restart of the daemon causes neither gaps nor duplicates.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx

FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 0.25, 5.0
SILENCE_SECONDS = 45.0  # several heartbeats: the connection is lost
# Transient statuses, worth a retry: the daemon is starting, stopping or busy.
PASSING = frozenset({502, 503, 504})

_LINE_END = re.compile("\r\n|\r|\n")

OnConnection = Callable[[bool], None]


@dataclass(frozen=True)
class Message:
    """One server-sent event. id: number of its row; None if it is not stored (live progress)."""

    event: str
    data: Any
    id: int | None


@dataclass
class _Waiting:
    """Exponential retry backoff, reset by a message.

    since: monotonic seconds of the first failure since the last connection.
    """

    seconds: float
    since: float | None = None

    def wait(self) -> float:
        """Sleep; return the seconds since the first failure."""
        now = time.monotonic()
        self.since = self.since or now
        time.sleep(self.seconds)
        self.seconds = min(2 * self.seconds, LONGEST_WAIT_SECONDS)
        return time.monotonic() - self.since


def follow(
    http: httpx.Client,
    path: str,
    *,
    after: int | None,
    on_connection: OnConnection | None,
    give_up_seconds: float | None,
    refuse: Callable[[httpx.Response], Exception],
    unreachable: Callable[[str], Exception],
) -> Iterator[Message]:
    """Yield the messages of the stream at `path`, reconnecting when it ends. See Client.stream."""
    last, waiting, notify = (
        after,
        _Waiting(FIRST_WAIT_SECONDS),
        on_connection or (lambda connected: None),
    )
    while True:
        cause = "the stream ended"
        try:
            with connect(http, path, last) as response:
                if response.status_code not in PASSING:
                    if response.is_error:
                        response.read()
                        raise refuse(response)
                    notify(True)
                    waiting.since = None
                    for message in parse(lines(response.iter_text())):
                        waiting.seconds = FIRST_WAIT_SECONDS
                        if message.id is not None:
                            if last is not None and message.id <= last:
                                continue
                            last = message.id
                        yield message
                cause = f"HTTP {response.status_code}"
        except httpx.TransportError as error:
            cause = str(error) or type(error).__name__
        notify(False)
        without = waiting.wait()
        if give_up_seconds is not None and without > give_up_seconds:
            raise unreachable(cause)


def parse(lines: Iterable[str]) -> Iterator[Message]:
    """Parse an event stream (WHATWG HTML, section 9.2). An incomplete last message is dropped."""
    event, data, last_id = "message", [], None
    for line in lines:
        if not line:
            if data:
                yield Message(event, _value("\n".join(data)), _number(last_id))
            event, data, last_id = "message", [], None
            continue
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "event":
            event = value
        elif name == "data":
            data.append(value)
        elif name == "id":
            last_id = value


def lines(chunks: Iterable[str]) -> Iterator[str]:
    """Split into lines at LF, CRLF and CR only: str.splitlines would also split at U+2028 and
    U+0085, which messages may contain."""
    rest = ""
    for chunk in chunks:
        rest += chunk
        held = rest.endswith("\r")  # possibly the first half of a CRLF
        *whole, rest = _LINE_END.split(rest[:-1] if held else rest)
        rest += "\r" if held else ""
        yield from whole


def connect(http: httpx.Client, path: str, last: int | None = None) -> Any:
    """Open the event stream; a context manager of the streaming response."""
    headers = {"Accept": "text/event-stream", "Cache-Control": "no-store"}
    if last is not None:
        headers["Last-Event-ID"] = str(last)
    timeout = httpx.Timeout(SILENCE_SECONDS, connect=5.0)
    return http.stream("GET", path, headers=headers, timeout=timeout)


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isascii() and text.isdigit() else None
