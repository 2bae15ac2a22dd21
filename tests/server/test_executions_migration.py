"""Databases of 0.1 and of schema 0002, with attempts and jobs in every state, become executions."""

from __future__ import annotations

import json
import sqlite3
import tarfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from server.database import migrate
from server.database.db import Database
from server.database.tables import Attempt, Execution, Job, Point, Run
from server.queries import job_views, run_views
from server.settings import Settings
from tests.conftest import FIXTURES

RUN, JOB = "run_f9b88b9467b0d22a", "job_e00a8db68ef84a00"
BOOT = "e3a34f3a-7b34-4b3e-9457-872b7c54c090"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """A data directory of 0.1, with what was added to its database: what was under way in it."""
    with tarfile.open(FIXTURES / "traind-0.1.tar.xz") as archive:
        archive.extract("./traind.db", tmp_path, filter="data")
    return Settings(data_dir=tmp_path)


def _change(settings: Settings, act: Callable[[sqlite3.Connection], None]) -> None:
    with closing(sqlite3.connect(settings.paths.database)) as connection, connection:
        act(connection)


def _copy(connection: sqlite3.Connection, table: str, **changed: Any) -> None:
    """One more row like the first."""
    names = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
    taken = ", ".join(f":{name}" if name in changed else f'"{name}"' for name in names)
    quoted = ", ".join(f'"{name}"' for name in names)
    connection.execute(
        f"INSERT INTO {table} ({quoted}) SELECT {taken} FROM {table} LIMIT 1", changed
    )


def _under_way(connection: sqlite3.Connection) -> None:
    open_ = {"ended_at": None, "outcome": None, "reason": None, "drained": 0, "settled": 0}
    _copy(connection, "attempts", id=7, number=2, token="two", **open_)
    ended = {"pid": None, "start_ticks": None, "outcome": "crashed", "reason": "host_restarted"}
    _copy(connection, "attempts", id=9, number=3, token="three", **ended)
    connection.execute("UPDATE runs SET escalation = 2, state = 'pausing'")
    nobody = {"pid": None, "boot_id": None, "start_ticks": None, "started_at": None}
    waits = {"state": "queued", "reason": None, "ended_at": None, "fraction": None, **nobody}
    device = json.dumps({"device": "cuda:1"})
    _copy(connection, "jobs", id="job_waits", token="w", where="device", params=device, **waits)
    _copy(connection, "jobs", id="job_inline", token="i", where="inline", run_id=None, **waits)
    runs = {"state": "running", "reason": None, "ended_at": None, "escalation": 1}
    _copy(connection, "jobs", id="job_runs", token="r", outbox_offset=77, **runs)
    _copy(connection, "jobs", id="job_failed", token="f", state="failed", reason="crashed",
          message="it broke")  # fmt: skip


def _to_0002(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    from alembic import command

    upgrade = command.upgrade
    monkeypatch.setattr(command, "upgrade", lambda config, _: upgrade(config, "0002"))
    Database.open(settings).close()
    monkeypatch.undo()


@pytest.mark.parametrize("before", ["0001", "0002"])
def test_attempts_and_jobs_become_executions(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, before: str
) -> None:
    if before == "0002":
        _to_0002(settings, monkeypatch)
    _change(settings, _under_way)
    points = _count(settings, "points")
    assert migrate._stamp(_library(settings), settings.paths.database)[0] == before
    db = Database.open(settings)
    try:
        assert db.integrity_check() == []
        with db.read() as session:
            attempts = {a.number: a for a in session.scalars(select(Attempt))}
            jobs = {j.id: j for j in session.scalars(select(Job))}
            assert session.query(Execution).count() == len(attempts) + len(jobs) == 8
            assert session.query(Point).count() == points > 0
            _check_attempts(attempts)
            _check_jobs(jobs)
            assert run_views.detail(session, session.get_one(Run, RUN)).state == "pausing"
            assert {j.id for j in job_views.jobs(session, state="running").data} == {"job_runs"}
            assert {j.id for j in job_views.jobs(session, state="failed").data} == {"job_failed"}
    finally:
        db.close()


def _check_attempts(attempts: dict[int, Attempt]) -> None:
    first, second, third = attempts[1], attempts[2], attempts[3]
    assert (first.outcome, first.reason, first.is_over) == ("paused", "requested", True)
    assert first.handle == {"boot_id": BOOT, "pid": 19671, "start_ticks": 629464}
    assert first.execution.directory == f"runs/{RUN}/attempts/0001"
    assert (first.execution.outbox_seq, first.execution.outbox_offset) == (95, 45017)
    assert (first.last_step, first.steps_done, first.device) == (72, 73, "cpu")
    assert (second.id, second.is_over, second.execution.state) == (7, False, "running")
    assert (second.execution.escalation, second.token) == (2, "two")
    assert (third.handle, third.outcome) == ({"boot_id": BOOT}, "crashed")
    assert third.execution.escalation == 0


def _check_jobs(jobs: dict[str, Job]) -> None:
    done, waits, inline, runs = (
        jobs[name] for name in (JOB, "job_waits", "job_inline", "job_runs")
    )
    assert (done.state, done.reason, done.stage_fraction) == ("completed", "finished", 1.0)
    assert done.result is not None
    assert done.execution.directory == f"jobs/{JOB}"
    assert (waits.state, waits.execution.place, waits.handle) == ("queued", "cuda:1", {})
    assert (inline.state, inline.where, inline.execution.place) == ("queued", "inline", "inline")
    assert (runs.state, runs.execution.escalation, runs.pid) == ("running", 1, 19552)
    assert (runs.execution.outbox_offset, runs.execution.outcome) == (77, None)
    failed = jobs["job_failed"]
    assert (failed.state, failed.message, failed.reason) == ("failed", "it broke", "crashed")


def _library(settings: Settings) -> Any:
    from server.database import sqlite

    return sqlite.choose_library()


def _count(settings: Settings, table: str) -> int:
    with closing(sqlite3.connect(settings.paths.database)) as connection:
        return connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
