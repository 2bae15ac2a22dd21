"""Serving job: answers completion requests with loaded models, and ends after an idle timeout or
when its daemon has exited.

One thread does everything. Up to MAX_AT_ONCE orders take turns, a token each, so that a short one
does not wait for a long one; loading a model blocks all of them.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.contract import completions as words
from trainer.contract import events, holds, sockets
from trainer.contract.jobs import ServeParams
from trainer.contract.orders import JobOrder
from trainer.contract.rundir import RunDir
from trainer.runtime import process
from trainer.runtime.process import Process

if TYPE_CHECKING:
    from trainer.data.tokenizer import Tokenizer
    from trainer.evaluate.network import Network

MAX_LOADED = 2  # to compare one checkpoint with another
MAX_AT_ONCE = 8  # concurrent orders; each may hold a KV cache as large as a model
POLL_SECONDS = 0.2  # seconds between polls of the inbox


def run(order: JobOrder, own: Process) -> dict[str, Any]:
    """params: jobs.ServeParams. Empty result when cancelled."""
    own.reporter.emit(events.Stage(stage="loading", detail="torch"))
    import trainer.evaluate.completions  # noqa: F401 - some seconds, before the socket is there

    return asyncio.run(_Server(order, own).serve())


class _Server:
    """The socket, the loaded models and the open orders."""

    def __init__(self, order: JobOrder, own: Process) -> None:
        self.order, self.own = order, own
        self.params = ServeParams.model_validate(order.params)
        self.loaded: OrderedDict[tuple[str, str], tuple[Network, Tokenizer]] = OrderedDict()
        self.turns = asyncio.Semaphore(MAX_AT_ONCE)
        self.open: set[asyncio.Task[None] | None] = set()
        self.daemon = os.getppid()
        self.idle_since = self.reported = time.monotonic()
        self.num_done = self.num_tokens = 0

    async def serve(self) -> dict[str, Any]:
        """Serve until the idle timeout, or until the job must end."""
        path = self.own.directory / words.SERVE_SOCKET
        with sockets.address(path) as address:
            server = await asyncio.start_unix_server(
                self._handle_connection, address, limit=words.MAX_ORDER_BYTES
            )
        try:
            self._report()
            was_stopped = await self._run_until_idle()
        finally:
            path.unlink(missing_ok=True)
            server.close()
        return {} if was_stopped else {"completions": self.num_done, "tokens": self.num_tokens}

    async def _run_until_idle(self) -> bool:
        """Serve; returns True if the job was asked to end, False at the idle timeout."""
        while not self.own.control.wants_attention():
            now = time.monotonic()
            if now - self.reported > self.params.report_seconds:
                self._report()
            if not self.open and (self._is_orphaned() or now > self._idle_deadline()):
                return False
            await asyncio.sleep(POLL_SECONDS)
        return True

    def _idle_deadline(self) -> float:
        return self.idle_since + self.params.idle_seconds

    def _is_orphaned(self) -> bool:
        """True if the daemon that started this job has exited; a new one starts its own job."""
        return os.getppid() != self.daemon

    def _report(self) -> None:
        self.reported = time.monotonic()
        done = f"{self.num_done:,} completions, {self.num_tokens:,} tokens"
        self.own.reporter.emit(events.Stage(stage="serving", detail=done))

    async def _handle_connection(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """One connection from its order to its end."""
        task = asyncio.current_task()
        self.open.add(task)
        try:
            line = await reader.readline()
            async with self.turns:
                if not reader.at_eof():
                    await self._stream_replies(line, reader, writer)
        except (OSError, ValueError) as error:  # hung up; a line without end
            print(f"a connection broke: {error}")
        finally:
            self.open.discard(task)
            self.idle_since = time.monotonic()
            writer.close()

    async def _stream_replies(
        self, line: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        for reply in self._replies(line):
            if reader.at_eof():
                return
            if reply is not None:
                writer.write(reply.model_dump_json().encode() + b"\n")
                await writer.drain()  # a slow reader delays only itself
            await asyncio.sleep(0)

    def _replies(
        self, line: bytes
    ) -> Iterator[words.TextPiece | words.Done | words.OrderRefused | None]:
        """The replies to one order; an error ends that order alone."""
        from trainer.evaluate.completions import Unusable, complete

        try:
            order = words.CompletionOrder.model_validate_json(line)
            for reply in complete(*self._load(order), order):
                if isinstance(reply, words.Done):
                    self.num_done += 1
                    self.num_tokens += reply.completion_tokens
                yield reply
        except Unusable as error:
            yield words.OrderRefused(message=str(error), param=error.param)
        except Exception as error:
            process.log_traceback(error)
            yield words.OrderRefused(message=process.explain(error)[1])

    def _load(self, order: words.CompletionOrder) -> tuple[Network, Tokenizer]:
        """The model of an order; loading a new one evicts the least recently used."""
        from trainer.evaluate.network import Network
        from trainer.jobs.load_model import load

        key = (order.run_dir, order.checkpoint)
        if key not in self.loaded:
            while len(self.loaded) >= MAX_LOADED:
                self.loaded.popitem(last=False)
            update = {"run_dir": order.run_dir, "params": {"checkpoint": order.checkpoint}}
            checkpoints = RunDir(Path(order.run_dir)).checkpoints
            holds.hold(checkpoints, order.checkpoint, self.order.job_id)
            try:
                loaded = load(self.order.model_copy(update=update))
            finally:
                holds.release(checkpoints, self.order.job_id)
            self.loaded[key] = (Network(loaded.model), loaded.tokenizer)
        self.loaded.move_to_end(key)
        return self.loaded[key]
