"""GET /v1/jobs/{id}/stream: relays the tokens of a sampling job from its Unix socket.

Nothing durable depends on it: the whole text is in the job's result. What a client does not read
stays in the socket, and the job drops a listener that lags half a second behind.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from starlette.concurrency import run_in_threadpool
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from server.api.disconnect import send_until_gone
from server.api.sse import HEADERS, HEARTBEAT_SECONDS, STOP_SECONDS, send_message, send_part
from server.events.hub import Hub, frame_of, goodbye_frame
from trainer.contract import sockets

if TYPE_CHECKING:
    from pathlib import Path

MAX_TOKEN_STREAMS = 64
MAX_LINE_BYTES = 1_000_000
CONNECT_SECONDS = 0.05  # between connection attempts: a small model is done quickly
POLL_SECONDS = 0.5  # interval at which the end of the job is checked


class TokenStream(Response):
    """`event: token` for each piece of text, then `event: end` with the state of the job.

    address: path of the job's socket. ended(): the job's state once it has ended. among: the set of
    open streams, which includes this one while it is open.
    """

    def __init__(
        self, hub: Hub, address: Path, ended: Callable[[], str | None], among: set[TokenStream]
    ) -> None:
        super().__init__(status_code=200, headers=HEADERS)
        del self.headers["content-length"]
        self.hub, self.address, self.ended, self.among = hub, address, ended, among
        self.reader: asyncio.StreamReader | None = None
        self.writer: asyncio.StreamWriter | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.among.add(self)
        try:
            await send_until_gone(receive, self._send_all(send), self._until_stopped())
        finally:
            self.among.discard(self)
            if self.writer is not None:
                self.writer.close()

    async def _send_all(self, send: Send) -> None:
        await send_message(
            send, {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        )
        await send_part(send, b": traind\n\n")
        last = await self._follow(send)
        await send_message(send, {"type": "http.response.body", "body": last, "more_body": False})

    async def _until_stopped(self) -> None:
        """Wait for the daemon to stop: a client that does not read must not delay that."""
        await self.hub.until_stopped()
        await asyncio.sleep(STOP_SECONDS)

    async def _follow(self, send: Send) -> bytes:
        """Relay tokens until the job has ended and nothing is left; returns the final frame."""
        sent = looked = time.monotonic()
        while not self.hub.stopping:
            line = await self._next_line()
            if line and (frame := _frame(line)):
                await send_part(send, frame)
                sent = time.monotonic()
                continue
            if time.monotonic() - looked > POLL_SECONDS:
                looked = time.monotonic()
                if state := await run_in_threadpool(self.ended):
                    return frame_of("end", json.dumps({"state": state}))
            if time.monotonic() - sent > HEARTBEAT_SECONDS:
                await send_part(send, b": heartbeat\n\n")
                sent = time.monotonic()
        return goodbye_frame("the daemon is stopping")

    async def _next_line(self) -> bytes:
        """The next line, or nothing if none is available yet."""
        if self.reader is None:
            await self._connect()
        elif not self.reader.at_eof():
            with suppress(TimeoutError, OSError, ValueError):  # ValueError: a line beyond the limit
                async with asyncio.timeout(POLL_SECONDS):
                    return await self.reader.readline()
        await asyncio.sleep(CONNECT_SECONDS)
        return b""

    async def _connect(self) -> None:
        """Connect to the job's socket, which does not exist before the job writes."""
        with suppress(TimeoutError, OSError), sockets.address(self.address) as address:
            async with asyncio.timeout(POLL_SECONDS):
                self.reader, self.writer = await asyncio.open_unix_connection(
                    address, limit=MAX_LINE_BYTES
                )


def _frame(line: bytes) -> bytes:
    """The SSE frame of a line; nothing for a malformed line."""
    with suppress(ValueError, KeyError, TypeError, RecursionError):
        token = json.loads(line)
        return frame_of(
            "token", json.dumps({"prompt": int(token["prompt"]), "text": token["text"]})
        )
    return b""
