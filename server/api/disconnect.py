"""Client disconnects: stops a long response when the client has left or no longer reads."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

from starlette.types import Receive


class Stalled(Exception):
    """The client has stopped reading the response."""


async def send_until_gone(
    receive: Receive, sending: Coroutine[Any, Any, None], *others: Coroutine[Any, Any, None]
) -> None:
    """Run `sending` until it is done, the client is gone or one of `others` ends.

    If the client stalls, or the response ends before everything was sent, the connection is
    aborted: an orderly close would wait for the client to read what is buffered.
    """
    tasks = [asyncio.create_task(work) for work in (sending, _until_gone(receive), *others)]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        is_done, is_gone = tasks[0].done(), tasks[1].done()
        for task in tasks:
            task.cancel()
        ended, *_ = await asyncio.gather(*tasks, return_exceptions=True)
    if not is_gone and (not is_done or isinstance(ended, Stalled)):
        _abort(receive)
    if isinstance(ended, Exception) and not isinstance(ended, Stalled):
        raise ended


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _abort(receive: Receive) -> None:
    """Abort the connection. ASGI cannot; uvicorn's `receive` belongs to an object with the
    transport."""
    transport = getattr(getattr(receive, "__self__", None), "transport", None)
    with suppress(AttributeError):
        transport.abort()  # type: ignore[union-attr]
