"""Ingestion in a process of its own: it reads what is reported, and its end loses nothing."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from multiprocessing import Pipe
from typing import Any

import pytest

from server.database import tables
from server.database.db import Database
from server.errors import Busy, DiskFull
from server.ingestion import ingest, worker
from server.ingestion.ingest import IngestResult
from server.ingestion.worker import Worker, WorkerGone
from server.settings import Settings
from server.supervision import journal_polling
from server.supervision.context import SupervisorContext
from tests.server import reporting


@pytest.fixture
def colleague(settings: Settings, db: Database) -> Iterator[Worker]:
    """A worker whose process is a thread here."""
    ours, theirs = Pipe()

    def live() -> None:
        with suppress(EOFError):
            worker._answer(theirs)  # type: ignore[arg-type]

    thread = threading.Thread(target=live)
    thread.start()
    found = Worker(0, ours)  # type: ignore[arg-type]
    found.open(settings.paths.root)
    yield found
    ours.close()
    thread.join(10)
    assert not thread.is_alive()


def test_it_applies_what_was_reported(settings: Settings, db: Database, colleague: Worker) -> None:
    reporter = reporting.attempt(db, settings, reporting.create(db))
    reporter.begin()
    reporter.steps(0, 50)
    with db.lend():
        first = colleague.read(reporter.execution_id, 40)
    with db.lend():
        second = colleague.read(reporter.execution_id, 40)
    assert (first.applied, first.more) == (40, True)
    assert (second.applied, second.more) == (12, False)


@pytest.mark.parametrize(
    "error", [Busy("held", headers={"Retry-After": "1"}), DiskFull("full"), OSError(5, "no")]
)
def test_its_errors_arrive_as_what_they_are(
    colleague: Worker, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def refuse(*_: Any) -> IngestResult:
        raise error

    monkeypatch.setattr(ingest, "ingest", refuse)
    with pytest.raises(type(error)) as found:
        colleague.read(1, 10)
    assert found.value.args == error.args
    assert vars(found.value) == vars(error)


def test_what_nobody_expects_arrives_with_its_name(
    colleague: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingest, "ingest", lambda *_: [][0])
    with pytest.raises(RuntimeError, match="IndexError: list index"):
        colleague.read(1, 10)


def test_one_that_says_nothing_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "ANSWER_SECONDS", 0.2)
    ours, theirs = socket.socketpair()
    with theirs, subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(60)"], pass_fds=[theirs.fileno()]
    ) as silent:  # fmt: skip
        theirs.close()
        found = Worker(silent.pid, worker.Connection(ours.detach()))
        with pytest.raises(WorkerGone, match=str(silent.pid)):
            found.read(1, 10)
        assert silent.wait(10) == -signal.SIGKILL


def test_it_comes_back_after_its_end_and_nothing_is_read_twice(
    settings: Settings, db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_polling, "RESTART_SECONDS", (0.0,))
    reporter = reporting.attempt(db, settings, reporting.create(db))
    reporter.begin()
    reporter.steps(0, 20)
    first = Worker.spawn(settings.paths.root)
    reads = journal_polling.JournalPolling(SupervisorContext(db, settings, (), worker=first))
    execution_id = reporter.execution_id
    with db.read() as session:
        watch = reads._context.watch(session.get_one(tables.Execution, execution_id))
    _until(lambda: first.is_ready)
    reads.read({execution_id: watch})
    os.kill(first.pid, signal.SIGKILL)
    reporter.steps(20, 40)
    watch.exhausted = False
    reads.read({execution_id: watch})  # by the daemon itself

    def is_back() -> bool:
        reads.read({})
        return reads._worker is not None and reads._worker.is_ready

    _until(is_back)
    assert reads._worker is not None
    assert reads._worker.pid != first.pid
    reporter.steps(40, 60)
    watch.exhausted = False
    reads.read({execution_id: watch})
    reads.close()
    with db.read() as session:
        assert sorted(p.step for p in session.query(tables.Point)) == list(range(60))


def test_one_that_is_stopped_gives_the_turn_back_soon(
    settings: Settings, db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "STOPPED_SECONDS", 0.3)
    found = Worker.spawn(settings.paths.root)
    _until(lambda: found.is_ready)
    os.kill(found.pid, signal.SIGSTOP)
    began = time.monotonic()
    with pytest.raises(WorkerGone), db.lend():
        found.read(1, 10)
    assert time.monotonic() - began < 5
    found.close()
    reporting.create(db)  # the turn to write is free again


def _until(holds: Callable[[], bool], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_the_mappers_are_configured_before_the_fork():
    """Configured later, they take their memory in both processes."""
    code = (
        "import os\n"
        "from server.database.tables import Base\n"
        "from server.ingestion.worker import Worker\n"
        "def fork():\n"
        "    print(all(mapper.configured for mapper in Base.registry.mappers))\n"
        "    raise SystemExit\n"
        "os.fork = fork\n"
        "Worker.fork()\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert ran.stdout == "True\n", ran.stderr
