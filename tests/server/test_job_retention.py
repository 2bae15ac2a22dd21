"""What is kept of finished work: runs keep everything, jobs and unused corpora go after a while."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from pathlib import Path

import pytest

from server import sd_notify
from server.database import tables
from server.domain import job_retention
from server.queries import run_views
from tests.server import rows
from tests.server.asgi import Asgi
from tests.server.reporting import attempt, create

DAY = 86_400.0
NOW = 2_000_000_000.0
OLD, RECENT = NOW - 31 * DAY, NOW - 29 * DAY


def age(path: Path, at: float) -> None:
    for one in [*path.rglob("*"), path]:
        os.utime(one, (at, at))


def add_job(
    asgi: Asgi, name: str, kind: str, at: float, *, row: bool = True, run: str = ""
) -> Path:
    directory = asgi.settings.paths.job(name)
    directory.mkdir(parents=True)
    order = {"job": kind, "run_id": run}
    (directory / "order.json").write_text(json.dumps(order))
    age(directory, at)
    if row:
        with asgi.db.write() as session:
            session.add(
                rows.job(
                    id=name, run_id=run or None, kind=kind, where="cpu", state="completed",
                    params={}, token=name, created_at=at, ended_at=at,
                )
            )  # fmt: skip
    return directory


def left(asgi: Asgi) -> set[str]:
    with asgi.db.read() as session:
        rows = {job.id for job in session.query(tables.Job)}
    directories = {p.name for p in (asgi.settings.paths.root / "jobs").iterdir()}
    return {f"{name}{'' if name in rows else ' without a row'}" for name in directories} | {
        f"{name} without a directory" for name in rows - directories
    }


def test_ended_jobs_go_after_the_days_and_what_a_run_rests_on_stays(asgi: Asgi) -> None:
    run = asgi.create()["id"]
    asgi.settings.paths.run(run).root.mkdir(parents=True, exist_ok=True)
    add_job(asgi, "job_sample", "sample", OLD, run=run)
    add_job(asgi, "job_recent", "sample", RECENT, run=run)
    add_job(asgi, "job_prepare", "prepare", OLD, run=run)
    add_job(asgi, "job_import", "import", OLD, run=run)
    add_job(asgi, "job_lost", "sample", OLD, row=False)
    add_job(asgi, "job_deleted_run", "prepare", OLD, row=False, run="run_gone")
    add_job(asgi, "job_restored", "prepare", OLD, row=False, run=run)
    add_job(asgi, "job_young", "sample", RECENT, row=False)
    with asgi.db.write() as session:
        rows.put(session.get_one(tables.Job, "job_recent"), "running")
        for name, at in (("old", OLD), ("new", RECENT), ("open", None)):
            session.add(tables.CommandRow(id=name, run_id=run, body={}, created_at=OLD, done_at=at))
    assert job_retention.sweep(asgi.db, asgi.settings.paths, 30, NOW) == 1
    assert left(asgi) == {
        "job_recent", "job_prepare", "job_import", "job_restored without a row",
        "job_young without a row",
    }  # fmt: skip
    with asgi.db.read() as session:
        assert {row.id for row in session.query(tables.CommandRow)} == {"new", "open"}
        assert run_views.get_run(session, "demo").id == run
    assert job_retention.sweep(asgi.db, asgi.settings.paths, 30, NOW) == 0


def corpora(asgi: Asgi) -> set[str]:
    root = asgi.settings.paths.corpora
    return {str(p.relative_to(root)) for p in (*root.iterdir(), *(root / "tokenizers").iterdir())}


@pytest.fixture
def stocked(asgi: Asgi) -> Asgi:
    root = asgi.settings.paths.corpora
    names = "used-1a unused-2b young-3c known/x hub tokens/t tokenizers/t-4d tokenizers/t-5e"
    for name in names.split():
        (root / name).mkdir(parents=True)
        (root / name / "file").write_text("x")
    age(root, OLD)
    age(root / "young-3c", RECENT)
    data = asgi.settings.paths.run("run_without_a_row").data
    data.parent.mkdir(parents=True)
    data.write_text(json.dumps({"corpus": "corpora/used-1a", "tokenizer_dir": "tokenizers/t-4d"}))
    return asgi


def test_corpora_that_no_run_on_the_disk_names_go(stocked: Asgi) -> None:
    before = corpora(stocked)
    gone = job_retention.sweep_corpora(stocked.db, stocked.settings.paths, 30, NOW)
    assert set(gone) == {"unused-2b", "t-5e"}
    assert before - corpora(stocked) == {"unused-2b", "tokenizers/t-5e"}


def test_nothing_goes_while_data_is_prepared_or_a_run_cannot_be_read(
    stocked: Asgi, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = corpora(stocked)
    add_job(stocked, "job_1", "prepare", OLD)
    with stocked.db.write() as session:
        rows.put(session.get_one(tables.Job, "job_1"), "running")
    assert job_retention.sweep_corpora(stocked.db, stocked.settings.paths, 30, NOW) == []
    with stocked.db.write() as session:
        rows.put(session.get_one(tables.Job, "job_1"), "completed")
    unreadable = stocked.settings.paths.run("run_broken").data
    unreadable.mkdir(parents=True)
    with pytest.raises(OSError, match="directory"):
        job_retention.sweep_corpora(stocked.db, stocked.settings.paths, 30, NOW)
    assert corpora(stocked) == before


def test_nothing_goes_while_the_directory_of_a_run_is_not_there(
    stocked: Asgi, tmp_path: Path
) -> None:
    """Its disk may not be mounted, and its data.json would name what it needs."""
    before = corpora(stocked)
    attempt(stocked.db, stocked.settings, create(stocked.db, "elsewhere"))
    runs = stocked.settings.paths.root / "runs"
    runs.rename(tmp_path / "not mounted")
    runs.mkdir()
    assert job_retention.sweep_corpora(stocked.db, stocked.settings.paths, 30, NOW) == []
    assert corpora(stocked) == before


# --- systemd -------------------------------------------------------------------------------------


def test_the_service_manager_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert not sd_notify.notify("READY=1")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        assert sd_notify.notify("READY=1")
        assert manager.recv(100) == b"READY=1"
        monkeypatch.setenv("WATCHDOG_USEC", "20000")
        monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))

        async def live(is_alive: bool) -> None:
            feeding = asyncio.create_task(sd_notify.feed_watchdog(lambda: is_alive))
            await asyncio.sleep(0.1)
            feeding.cancel()

        asyncio.run(live(True))
        assert manager.recv(100) == b"WATCHDOG=1"
        manager.setblocking(False)
        while True:
            try:
                manager.recv(100)
            except BlockingIOError:
                break
        asyncio.run(live(False))  # a daemon whose supervisor died is not alive
        with pytest.raises(BlockingIOError):
            manager.recv(100)
    monkeypatch.setenv("WATCHDOG_PID", "1")
    assert sd_notify.watchdog_seconds() is None
