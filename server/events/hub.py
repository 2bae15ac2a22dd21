"""The live stream's hub: reads events and progress once and sends them to every client.

The hub reads new event rows once however many clients there are, keeps the newest few ready in
memory, and wakes the clients. A client is nothing but a position in that sequence: one that lags
behind what is kept reads the database again, in short sessions, so a slow one costs no more memory
than a fast one. Nothing is read without listeners.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import Counter, deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from starlette.concurrency import run_in_threadpool

from server.events.commit_notifier import Feed

KEPT_EVENTS = 512
BATCH = 100
READINGS = 4  # of clients that lag behind, at once: each takes a thread and a database connection
PROGRESS_SECONDS = 1.0
LONGEST_WAIT_SECONDS = 15.0
PAUSE_SECONDS = 0.05  # between two readings, however much is written

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BufferedEvent:
    """One event row, rendered. size counts towards what a client is sent at once."""

    id: int
    run_id: str | None
    frame: bytes


@dataclass(frozen=True)
class Live:
    """The newest progress of one run. version grows with each change."""

    version: int
    frame: bytes


@dataclass(frozen=True)
class EventSource:
    """Database reads of the hub; each function opens and closes its own session (in a thread).

    events(after, run_id, limit): rows after an id. newest(): the last id there is.
    progress(run_ids): what changed, as {run_id: JSON}; None asks for every active run, and a run
    that is gone is answered with None.
    """

    events: Callable[[int, str | None, int], list[BufferedEvent]]
    newest: Callable[[], int]
    progress: Callable[[set[str] | None], dict[str, str | None]]


class Hub:
    """The hub. Everything runs on the event loop, except `stop`, which any thread may call."""

    def __init__(self, source: EventSource, feed: Feed) -> None:
        self.source, self._feed = source, feed
        self.kept: deque[BufferedEvent] = deque(maxlen=KEPT_EVENTS)
        self.live: dict[str, Live] = {}
        self.position = 0
        self.stopping = False
        self.clients: Counter[str | None] = Counter()
        self._changed = asyncio.Event()
        self._joining = asyncio.Lock()
        self._readings = asyncio.Semaphore(READINGS)
        self._floor = 0  # every row after this id is in `kept`
        self._version = 0
        self._task: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    # --- for clients -----------------------------------------------------------------------------

    async def join(self, run_id: str | None) -> None:
        """Add a client; the first one starts the reader."""
        self._loop = asyncio.get_running_loop()
        self.clients[run_id] += 1
        try:
            async with self._joining:
                if self._task is None or self._task.done():
                    self.kept.clear()
                    self.live.clear()
                    self.position = self._floor = await run_in_threadpool(self.source.newest)
                    self._task = asyncio.create_task(self._read(), name="traind-stream")
        except BaseException:  # gone before it began
            self.leave(run_id)
            raise

    def leave(self, run_id: str | None) -> None:
        """Remove a client; the last one stops the reader."""
        self.clients[run_id] -= 1
        if self.clients[run_id] <= 0:
            del self.clients[run_id]
        if not self.clients and self._task is not None:
            self._task.cancel()
            self._task = None

    async def events_after(
        self, position: int, run_id: str | None
    ) -> tuple[list[BufferedEvent], int]:
        """(events after `position`, the new position): from memory, or from the database."""
        if position >= self._floor:
            found = [e for e in self.kept if e.id > position and run_id in (None, e.run_id)]
            # a client that read the database may be ahead of the hub: it never goes back
            ahead = max(position, self.position)
            return found[:BATCH], found[BATCH - 1].id if len(found) > BATCH else ahead
        floor = self._floor
        async with self._readings:
            found = await run_in_threadpool(self.source.events, position, run_id, BATCH)
        seen = found[-1].id if found else position
        return found, seen if len(found) == BATCH else max(seen, floor)

    def progress_after(self, version: int, run_id: str | None) -> tuple[list[Live], int]:
        """(progress newer than `version`, the present version)."""
        wanted = self.live.values() if run_id is None else [self.live.get(run_id)]
        return [p for p in wanted if p and p.version > version], self._version

    async def news(self, seconds: float) -> bool:
        """Wait for a change; False when there was none within `seconds`."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._changed.wait()
                return True
        return False

    async def until_stopped(self) -> None:
        """Wait for `stop`, also without listeners to events."""
        self._loop = asyncio.get_running_loop()
        while not self.stopping:
            await self.news(LONGEST_WAIT_SECONDS)

    # --- for the daemon --------------------------------------------------------------------------

    def stop(self) -> None:
        """End every stream, so that the server can stop: each client gets a `bye` frame."""
        self.stopping = True
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._wake)

    async def _read(self) -> None:
        last_progress = 0.0
        while True:
            seen = self._feed.version
            try:
                changed = await self._read_events()
                now = asyncio.get_running_loop().time()
                if now - last_progress >= PROGRESS_SECONDS:
                    last_progress = now
                    changed |= await self._read_progress()
                if changed:
                    self._wake()
            except asyncio.CancelledError:
                raise
            except Exception as error:  # a busy database, for example: the next round reads it
                log.warning("the live stream could not be read: %s", error)
                await asyncio.sleep(PROGRESS_SECONDS)
            await asyncio.sleep(PAUSE_SECONDS)
            await self._feed.wait(seen, PROGRESS_SECONDS)

    async def _read_events(self) -> bool:
        changed = False
        while True:
            found = await run_in_threadpool(self.source.events, self.position, None, BATCH)
            for event in found:
                if len(self.kept) == self.kept.maxlen:
                    self._floor = self.kept[0].id
                self.kept.append(event)
                self.position = event.id
                changed = True
            if len(found) < BATCH:
                return changed

    async def _read_progress(self) -> bool:
        single = {run_id for run_id in self.clients if run_id is not None}
        found: dict[str, str | None] = {}
        if None in self.clients:
            found |= await run_in_threadpool(self.source.progress, None)
        if single - found.keys():
            found |= await run_in_threadpool(self.source.progress, single - found.keys())
        before = self._version
        for run_id, text in found.items():
            frame = frame_of("gone" if text is None else "progress", text or "{}")
            known = self.live.get(run_id)
            if known is None or known.frame != frame:
                self._version += 1
                self.live[run_id] = Live(self._version, frame)
        for run_id in self.live.keys() - found.keys():
            del self.live[run_id]
        return self._version != before

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


def frame_of(event: str, data: str, event_id: int | None = None) -> bytes:
    """One message of an event stream. data is JSON on one line, so it needs no splitting."""
    head = "" if event_id is None else f"id: {event_id}\n"
    return f"{head}event: {event}\ndata: {data}\n\n".encode()


def goodbye_frame(reason: str) -> bytes:
    """The last message of a stream that we end; the browser tries again after `retry`."""
    return b"retry: 1000\n" + frame_of("bye", json.dumps({"reason": reason}))
