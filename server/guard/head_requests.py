"""HEAD for every GET route: the same status and headers without a body.

The handler of GET runs; what it sends after its headers is dropped, and it receives a
disconnect, so that a stream ends with its headers.
"""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send


class HeadRequests:
    """The ASGI layer next to the routes."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self.app(scope, receive, send)
            return
        answered = asyncio.Event()

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                await send(message)
                await send({"type": "http.response.body", "body": b"", "more_body": False})
                answered.set()
            else:
                await asyncio.sleep(0)  # a handler that watches for a disconnect may stop

        async def receiving() -> Message:
            if answered.is_set():
                return {"type": "http.disconnect"}
            return await _first(answered, receive)

        await self.app({**scope, "method": "GET"}, receiving, sending)


async def _first(answered: asyncio.Event, receive: Receive) -> Message:
    """What the client sends next, or that it left as soon as the headers are out."""
    disconnected = asyncio.ensure_future(receive())
    done = asyncio.ensure_future(answered.wait())
    try:
        await asyncio.wait({disconnected, done}, return_when=asyncio.FIRST_COMPLETED)
        return disconnected.result() if disconnected.done() else {"type": "http.disconnect"}
    finally:
        disconnected.cancel()
        done.cancel()
