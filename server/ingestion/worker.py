"""Ingestion worker: a separate process, so that many records do not delay requests.

One Python interpreter runs one thread at a time: at 2,000 records per second in the daemon itself,
one answer in a hundred took 65 ms. The worker is forked before the daemon has threads or
connections, and shares its memory. It reads one journal per request and ends with the daemon.
Exactly-once does not depend on it: each reader checks the cursor under the write lock.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NoReturn

from sqlalchemy.orm import configure_mappers

from server.database.db import Database
from server.errors import TraindError
from server.ingestion import ingest
from server.ingestion.ingest import IngestResult
from server.launch import process
from trainer.contract.rundir import DataDir

ANSWER_SECONDS = 10.0  # longer than any wait for a lock; a silent worker is killed
STOPPED_SECONDS = 1.0  # limit for a worker stopped by a signal: it holds the write lock
POLL_SECONDS = 0.25
READY = "ready"
NICE = 5  # requests take precedence
_CHANNEL = 3  # the first descriptor after stderr

log = logging.getLogger("traind.ingest")


class WorkerGone(Exception):
    """The worker process has ended; the next reader repeats its uncommitted work."""


class Worker:
    """The daemon's handle to the worker process. Used by one thread at a time."""

    def __init__(self, pid: int, channel: Connection) -> None:
        self.pid, self._channel = pid, channel
        self._child: subprocess.Popen[bytes] | None = None
        self._is_ready = True

    @classmethod
    def fork(cls) -> Worker:
        """Fork the worker. Call it while there is one thread and no database is open."""
        ours, theirs = socket.socketpair()
        configure_mappers()  # before the fork, so that both processes share the result
        gc.freeze()  # pages that the garbage collector skips stay shared
        pid = os.fork()
        if pid == 0:
            _live(theirs.detach())
        theirs.close()
        return cls(pid, Connection(ours.detach()))

    @classmethod
    def spawn(cls, root: Path) -> Worker:
        """Start a new worker by exec, because a process with threads must not be forked.

        Send requests once it `is_ready`. Raises OSError."""
        ours, theirs = socket.socketpair()
        with theirs:
            child = subprocess.Popen(
                [sys.executable, "-m", "server.ingestion.worker", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
        made = cls(child.pid, Connection(ours.detach()))
        made._child, made._is_ready = child, False
        made.open(root)
        return made

    @property
    def is_ready(self) -> bool:
        """True if the worker accepts requests. Raises WorkerGone if it ended before that."""
        try:
            if not self._is_ready and self._channel.poll(0):
                self._is_ready = self._channel.recv() == READY
        except (OSError, EOFError) as error:
            raise WorkerGone(f"the ingestion process {self.pid} ended at its start") from error
        return self._is_ready

    def open(self, root: Path) -> None:
        """Open the data directory's database in the worker; its schema must be current."""
        with suppress(OSError):  # the first request detects that it is gone
            self._channel.send(root)

    def read(self, execution_id: int, max_records: int) -> IngestResult:
        """Call `ingest.ingest` in the worker; raises what that raises.

        The caller holds the write lock (`Database.lend`). Raises WorkerGone.
        """
        return self._request(execution_id, max_records)

    def close(self) -> None:
        """End the worker and wait for its exit."""
        self._channel.close()
        if self._child is not None:
            self._child.wait()
            return
        with suppress(ChildProcessError):
            os.waitpid(self.pid, 0)

    def _request(self, *question: Any) -> Any:
        try:
            self._channel.send(question)
            if not self._answers():
                os.kill(self.pid, signal.SIGKILL)
            answer = self._channel.recv()
        except (OSError, EOFError) as error:
            raise WorkerGone(f"the ingestion process {self.pid} has ended") from error
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _answers(self) -> bool:
        """True if an answer arrives in time. The worker has the write lock until then: the timeout
        is short, and shorter for a process stopped by a signal."""
        began = stopped_since = time.monotonic()
        while not self._channel.poll(min(POLL_SECONDS, ANSWER_SECONDS)):
            now = time.monotonic()
            if not process.is_stopped(self.pid):
                stopped_since = now
            if now - began >= ANSWER_SECONDS or now - stopped_since >= STOPPED_SECONDS:
                return False
        return True


# --- the process itself --------------------------------------------------------------------------


def _live(channel: int) -> NoReturn:
    """Serve requests until the daemon is gone. Ignores signals to the group; the daemon acts."""
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.dup2(channel, _CHANNEL)
        os.closerange(_CHANNEL + 1, os.sysconf("SC_OPEN_MAX"))  # the daemon's lock and listener
        os.nice(NICE)
        gc.enable()
        _answer(Connection(_CHANNEL))
    except (EOFError, ConnectionError):
        os._exit(0)
    except BaseException:
        log.exception("the ingestion process failed")
    os._exit(1)


def main(descriptor: int) -> NoReturn:
    """Entry point of a worker that replaces one that has ended."""
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.nice(NICE)
        _answer(Connection(descriptor), tell_ready=True)
    except (EOFError, ConnectionError):
        os._exit(0)
    except BaseException:
        log.exception("the ingestion process failed")
    os._exit(1)


def _answer(channel: Connection, *, tell_ready: bool = False) -> NoReturn:
    paths = DataDir(channel.recv())
    db = Database.opened(paths)
    if tell_ready:
        channel.send(READY)
    while True:
        execution_id, max_records = channel.recv()
        try:
            answer: object = ingest.ingest(db, execution_id, paths, max_records)
        except (TraindError, OSError) as error:
            answer = error
        except Exception as error:
            log.exception("the journal of execution %s could not be read", execution_id)
            answer = RuntimeError(f"{type(error).__name__}: {error}")
        channel.send(answer)


if __name__ == "__main__":
    main(int(sys.argv[1]))
