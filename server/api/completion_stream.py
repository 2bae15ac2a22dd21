"""Responses to completion requests: relayed from the serving job's socket, streamed or whole.

Nothing here is durable. A disconnect on either side ends the work on both.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from starlette.concurrency import run_in_threadpool
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from server.api.deps import Act
from server.api.disconnect import send_until_gone
from server.api.openai_dialect import CompletionBuilder, openai_error
from server.api.sse import HEADERS, HEARTBEAT_SECONDS, STOP_SECONDS, send_message, send_part
from server.errors import Busy, IdempotencyMismatch, Invalid, TraindError, Unserved
from server.events.hub import Hub
from server.guard.idempotency import StoredAnswer
from server.guard.problems import problem
from trainer.contract import sockets, units
from trainer.contract.completions import (
    MAX_REPLY_BYTES,
    REPLY,
    CompletionOrder,
    Done,
    OrderRefused,
    TextPiece,
)

if TYPE_CHECKING:
    from pathlib import Path

MAX_OPEN = 64
POLL_SECONDS = 0.5  # interval at which the job and a stop of the daemon are checked
CONNECT_SECONDS = 0.05  # between attempts to connect to a job that is starting
START_SECONDS = 300.0  # for a job to start, on a busy machine
TRIES = 3  # an idle job may exit at the moment of the request

STOPPING = "The daemon is stopping."
NONSENSE = "The serving process sent an invalid reply."

Reply = TextPiece | Done


@dataclass(frozen=True)
class ServingJob:
    """A serving job, from its row: the path of its socket, and how it failed."""

    job_id: str
    socket: Path
    failure: str | None = None


async def replies_to(
    order: CompletionOrder, find: Callable[[str | None], ServingJob], hub: Hub
) -> AsyncGenerator[Reply | None, None]:
    """Yield the job's replies to an order; None about every POLL_SECONDS without a reply.

    find(job): the state of that serving job; without a name, of the current one, created if absent.
    Raises Invalid for an order that the model cannot follow, Unserved.
    """
    until, silent, server = time.monotonic() + START_SECONDS, 0, None
    while silent < TRIES:
        server = await run_in_threadpool(find, server.job_id if server else None)
        connection = None if server.failure else await _connected(server.socket)
        if connection is None:
            _require_startable(server, hub, is_late=time.monotonic() > until)
            yield None
            continue
        has_replied = False
        async with aclosing(_replies(order, *connection, hub)) as replies:
            async for reply in replies:
                has_replied = has_replied or reply is not None
                yield reply
                if isinstance(reply, Done):
                    return
        if has_replied:
            raise Unserved("The serving process exited before the text was complete.")
        silent += 1
    raise Unserved("The serving process exited before its first reply.")


async def _connected(path: Path) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
    """Connect to the job's socket; None if that fails for POLL_SECONDS."""
    until = time.monotonic() + POLL_SECONDS
    while time.monotonic() < until:
        with suppress(OSError), sockets.address(path) as address:
            return await asyncio.open_unix_connection(address, limit=MAX_REPLY_BYTES)
        await asyncio.sleep(CONNECT_SECONDS)
    return None


def _require_startable(server: ServingJob, hub: Hub, *, is_late: bool) -> None:
    """Raises Unserved if the job failed or did not start in time."""
    if hub.stopping:
        raise Unserved(STOPPING)
    if server.failure is not None:
        raise Unserved(f"The serving process could not be started: {server.failure}")
    if is_late:
        raise Unserved(
            f"The serving process did not start within {units.duration(START_SECONDS)}.",
            hint=f"GET /v1/jobs/{server.job_id} shows its state.",
        )


async def _replies(
    order: CompletionOrder, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, hub: Hub
) -> AsyncGenerator[Reply | None, None]:
    """Yield replies until the job disconnects. Raises Invalid, Unserved."""
    try:
        writer.write(order.model_dump_json().encode() + b"\n")
        while not hub.stopping:
            line = None
            with suppress(TimeoutError):
                async with asyncio.timeout(POLL_SECONDS):
                    line = await reader.readline()
            if line is not None and not line.endswith(b"\n"):
                return
            yield _read(line) if line is not None else None
        raise Unserved(STOPPING)
    except ValueError:  # a line beyond the limit
        raise Unserved(NONSENSE) from None
    except OSError:
        return
    finally:
        writer.close()


def _read(line: bytes) -> Reply:
    """Parse a reply. Raises Invalid or Unserved if it is an error."""
    try:
        reply = REPLY.validate_json(line)
    except ValueError:
        raise Unserved(NONSENSE) from None
    if not isinstance(reply, OrderRefused):
        return reply
    if reply.param is None:
        raise Unserved(f"It failed: {reply.message}.")
    where = [{"pointer": f"/{reply.param}", "detail": reply.message}]
    raise Invalid(f"{reply.param}: {reply.message}.", errors=where)


class Answering(Response):
    """The HTTP response built from the replies.

    among: the set of open responses, which includes this one while it is open. act: for a request
    with an Idempotency-Key; stores the response, or returns the stored one for a repeat.
    """

    def __init__(
        self,
        telling: CompletionBuilder,
        replies: AsyncGenerator[Reply | None, None],
        hub: Hub,
        among: set[Answering],
        act: Act | None,
    ) -> None:
        super().__init__(status_code=200)
        self.telling, self.replies, self.hub, self.among = telling, replies, hub, among
        self.act, self.streamed, self.has_begun = act, bytearray(), False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        twin = next((other for other in self.among if self._has_the_key_of(other)), None)
        self.among.add(self)
        try:
            async with aclosing(self.replies):  # cancels the job's work when the client leaves
                if twin is None:
                    work = self._answer(scope, receive, send)
                    await send_until_gone(receive, work, self._until_stopped())
                else:
                    await self._refuse(self._conflict(twin), scope, receive, send)
        finally:
            self.among.discard(self)

    def _has_the_key_of(self, other: Answering) -> bool:
        ours, theirs = (one.act.key if one.act is not None else None for one in (self, other))
        return ours is not None and theirs is not None and ours.key == theirs.key

    def _conflict(self, twin: Answering) -> TraindError:
        assert self.act is not None
        assert twin.act is not None
        if self.act.key != twin.act.key:
            return IdempotencyMismatch("Another request with this Idempotency-Key is in progress.")
        first = "The first request with this Idempotency-Key is still being answered."
        return Busy(first, headers={"Retry-After": "1"})

    async def _until_stopped(self) -> None:
        """Wait for the daemon to stop: a client that does not read must not delay that."""
        await self.hub.until_stopped()
        await asyncio.sleep(POLL_SECONDS + STOP_SECONDS)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            # checked again: another request with this key may have ended since the handler checked
            if self.act is not None and (kept := await run_in_threadpool(self.act.kept)):
                await kept(scope, receive, send)
            elif self.telling.is_streamed:
                await self._in_parts(send)
            else:
                await (await self._complete()).response()(scope, receive, send)
        except TraindError as error:
            await self._refuse(error, scope, receive, send)

    async def _refuse(self, error: TraindError, scope: Scope, receive: Receive, send: Send) -> None:
        error.extra["error"] = openai_error(error)
        if not self.has_begun:
            await problem(error)(scope, receive, send)
            return
        await self._part(send, json.dumps({"error": error.extra["error"]}))
        await self._end(send)

    async def _complete(self) -> StoredAnswer:
        pieces: list[TextPiece] = []
        async for reply in self.replies:
            if isinstance(reply, TextPiece):
                pieces.append(reply)
            elif isinstance(reply, Done):
                answer = StoredAnswer(200, self.telling.whole(pieces, reply).model_dump_json())
                await self._store(answer)
                return answer
        raise AssertionError("replies end with Done or raise")

    async def _in_parts(self, send: Send) -> None:
        """Stream the reply. Starts with the first token, so that an earlier error has its HTTP
        status, or after a while without one.
        """
        spoke = time.monotonic()
        async for reply in self.replies:
            if reply is not None and not self.has_begun:
                await self._begin(send)
            if isinstance(reply, TextPiece):
                await self._part(send, self.telling.part(reply).model_dump_json())
            elif isinstance(reply, Done):
                if (last := self.telling.last_part(reply)) is not None:
                    await self._part(send, last.model_dump_json())
                await self._part(send, "[DONE]")
                await self._store(StoredAnswer(200, self.streamed.decode(), HEADERS))
                await self._end(send)
            elif time.monotonic() - spoke > HEARTBEAT_SECONDS:
                await (send_part(send, b": heartbeat\n\n") if self.has_begun else self._begin(send))
            else:
                continue
            spoke = time.monotonic()

    async def _begin(self, send: Send) -> None:
        self.has_begun = True
        headers = [(k.lower().encode(), v.encode()) for k, v in HEADERS.items()]
        start = {"type": "http.response.start", "status": 200, "headers": headers}
        await send_message(send, start)
        await send_part(send, b": traind\n\n")

    async def _part(self, send: Send, data: str) -> None:
        frame = f"data: {data}\n\n".encode()
        if self.act is not None:
            self.streamed += frame
        await send_part(send, frame)

    async def _end(self, send: Send) -> None:
        await send_message(send, {"type": "http.response.body", "body": b"", "more_body": False})

    async def _store(self, answer: StoredAnswer) -> None:
        if self.act is not None:
            await run_in_threadpool(self.act.keep, answer)
