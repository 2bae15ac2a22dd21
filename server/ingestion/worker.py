"""Ingestion in a process of its own, so that a flood of reports does not hold up the answers.

Both are Python, and one interpreter runs one thread at a time: beside 2,000 records a second, one
answer in a hundred took 65 ms. The worker is a fork of the daemon before it has threads or
connections of its own, and shares its memory. It does what it is asked, one journal at a time, and
ends when the daemon does. Exactly once holds without it: the cursor is checked under the write
lock, whoever reads.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import socket
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NoReturn

from server.database.db import Database
from server.errors import TraindError
from server.ingestion import ingest
from server.ingestion.ingest import IngestResult
from trainer.contract.rundir import DataDir

ANSWER_SECONDS = 60.0  # longer than any lock is waited for: a worker that says nothing is ended
NICE = 5  # an answer somebody waits for comes first
_CHANNEL = 3  # the descriptor after the standard ones

log = logging.getLogger("traind.ingest")


class WorkerGone(Exception):
    """The process has ended; what it had not committed is read by whoever reads next."""


class Worker:
    """The process, seen from the daemon. Used by one thread at a time."""

    def __init__(self, pid: int, channel: Connection) -> None:
        self.pid, self._channel = pid, channel

    @classmethod
    def fork(cls) -> Worker:
        """Begin the process. Call it while there is one thread and no database is open."""
        ours, theirs = socket.socketpair()
        gc.freeze()  # what is never looked at for garbage stays shared
        pid = os.fork()
        if pid == 0:
            _live(theirs.detach())
        theirs.close()
        return cls(pid, Connection(ours.detach()))

    def open(self, root: Path) -> None:
        """Let it open the data directory's database, which is there and has today's schema."""
        with suppress(OSError):  # the first question finds that it is gone
            self._channel.send(root)

    def read(self, what: str, key: int | str, max_records: int) -> IngestResult:
        """`ingest.ingest_attempt` or `ingest_job` over there; raises what that raises.

        The caller holds the turn to write (`Database.lend`). Raises WorkerGone.
        """
        return self._ask(what, key, max_records)

    def close(self) -> None:
        """Let it end, and wait for that."""
        self._channel.close()
        with suppress(ChildProcessError):
            os.waitpid(self.pid, 0)

    def _ask(self, *question: Any) -> Any:
        try:
            self._channel.send(question)
            if not self._channel.poll(ANSWER_SECONDS):
                os.kill(self.pid, signal.SIGKILL)
            answer = self._channel.recv()
        except (OSError, EOFError) as error:
            raise WorkerGone(f"the ingesting process {self.pid} has ended") from error
        if isinstance(answer, Exception):
            raise answer
        return answer


# --- the process itself --------------------------------------------------------------------------


def _live(channel: int) -> NoReturn:
    """Answer questions until the daemon is gone. Signals to its group are the daemon's to obey."""
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
        log.exception("the ingesting process failed")
    os._exit(1)


def _answer(channel: Connection) -> NoReturn:
    paths = DataDir(channel.recv())
    db = Database.opened(paths)
    while True:
        what, key, max_records = channel.recv()
        try:
            answer: object = ingest.READERS[what](db, key, paths, max_records)
        except (TraindError, OSError) as error:
            answer = error
        except Exception as error:
            log.exception("the report of %s %s could not be read", what, key)
            answer = RuntimeError(f"{type(error).__name__}: {error}")
        channel.send(answer)
