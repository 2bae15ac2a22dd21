"""Server-sent events: an ASGI response that sends as fast as its client reads.

A client that reads nothing for STALL_SECONDS is disconnected: it reconnects with Last-Event-ID and
misses nothing. The task of a client that has left ends at once.
"""

from __future__ import annotations

import asyncio

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from server.api.disconnect import Stalled, send_until_gone
from server.events.hub import Hub, goodbye_frame

HEARTBEAT_SECONDS = 15.0
STALL_SECONDS = 20.0
STOP_SECONDS = 1.0
SLICE_BYTES = 32_000
HEADERS = {
    "Cache-Control": "no-store",
    "X-Accel-Buffering": "no",
    "Content-Type": "text/event-stream; charset=utf-8",
}


class EventStream(Response):
    """Streams events after `position` (of one run, or all), then live ones until the client
    disconnects."""

    def __init__(self, hub: Hub, run_id: str | None, position: int) -> None:
        super().__init__(status_code=200, headers=HEADERS)
        del self.headers["content-length"]
        self.hub, self.run_id, self.position = hub, run_id, position

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send_until_gone(receive, self._send_all(send), self._until_stopped())

    async def _send_all(self, send: Send) -> None:
        await send_message(
            send,
            {"type": "http.response.start", "status": 200, "headers": self.raw_headers},
        )
        await send_part(send, b"retry: 2000\n: traind\n\n")
        await self.hub.join(self.run_id)
        try:
            last = await self._follow(send)
        finally:
            self.hub.leave(self.run_id)
        await send_message(send, {"type": "http.response.body", "body": last, "more_body": False})

    async def _until_stopped(self) -> None:
        """Wait for the daemon to stop: a client that does not read must not delay that."""
        await self.hub.until_stopped()
        await asyncio.sleep(STOP_SECONDS)

    async def _follow(self, send: Send) -> bytes:
        """Send events until the stream should end; returns the final frame."""
        version = 0
        while not self.hub.stopping:
            events, position = await self.hub.events_after(self.position, self.run_id)
            live, version = self.hub.progress_after(version, self.run_id)
            waiting = bool(events or live) or position != self.position
            self.position = position
            if events or live:
                await send_part(send, b"".join(item.frame for item in (*events, *live)))
            if any(item.frame.startswith(b"event: gone") for item in live) and self.run_id:
                return goodbye_frame("the run was deleted")
            if not waiting and not await self.hub.news(HEARTBEAT_SECONDS):
                await send_part(send, b": heartbeat\n\n")
        return goodbye_frame("the daemon is stopping")


async def send_part(send: Send, part: bytes) -> None:
    """Send in slices: the server buffers a whole slice before it makes us wait for the client."""
    for start in range(0, len(part), SLICE_BYTES):
        body = part[start : start + SLICE_BYTES]
        await send_message(send, {"type": "http.response.body", "body": body, "more_body": True})


async def send_message(send: Send, message: dict) -> None:
    try:
        async with asyncio.timeout(STALL_SECONDS):
            await send(message)
    except TimeoutError:
        raise Stalled from None
