"""F28: when the database is gone, the reports come back from the journals."""

from __future__ import annotations

from typing import Any

import pytest

from server.database import migrate, tables
from server.database.db import Database
from server.domain import attempts
from server.maintenance.rebuild import rebuild
from server.queries import curves, history, run_views
from server.settings import Settings
from tests.server.reporting import Reporter, attempt, create
from trainer.contract import orders
from trainer.contract.reasons import Reason
from trainer.contract.rundir import locked


def _ordered(db: Database, settings: Settings, run_id: str) -> Reporter:
    """An attempt with its order on the disk, as the supervisor leaves it."""
    reporter = attempt(db, settings, run_id)
    with db.read() as session:
        run = session.get_one(tables.Run, run_id)
        row = session.get_one(tables.Attempt, reporter.attempt_id)
        orders.write(reporter.outbox.parent, attempts.build_order(session, run, row, settings))
    return reporter


def _history(db: Database) -> dict[str, Any]:
    with db.read() as session:
        run = run_views.get_run(session, "demo")
        return {
            "curve": curves.metrics(session, run, ["loss", "mfu"], superseded=True),
            "current": curves.metrics(session, run, ["loss", "val_bpb"], max_points=10),
            "checkpoints": [c.model_dump() for c in history.checkpoints(session, run)],
            "run": (run.id, run.step, run.end_step, run.tokens_seen, run.progress, run.sparkline),
            "phases": [
                (p.start_step, p.end_step, p.ended_at_step, p.schedule)
                for p in history.phases(session, run)
            ],
        }


def test_f28_rebuild_makes_the_same_history(settings: Settings) -> None:
    db = Database.open(settings)
    run_id = create(db, steps=60)
    first = _ordered(db, settings, run_id)
    first.begin()
    first.steps(0, 35)
    name = first.save(30)
    first.ingest()
    second = _ordered(db, settings, run_id)
    second.begin(30, name)
    second.steps(30, 60)
    last = second.save(60)
    second.end("completed", 60, Reason.finished)
    second.ingest()
    for saved in (name, last):
        (settings.paths.run(run_id).checkpoints / saved).mkdir(parents=True)
    before = _history(db)
    db.close()
    settings.paths.database.write_bytes(b"garbage" * 1000)
    with pytest.raises(migrate.Refused):
        Database.open(settings)
    result = rebuild(settings)
    assert (result.runs, result.problems) == (["demo"], [])
    assert result.set_aside is not None
    db = Database.open(settings)
    assert _history(db) == before
    with db.read() as session:
        assert run_views.get_run(session, "demo").state == "completed"
    assert db.integrity_check() == []
    db.close()


def test_f28_rebuild_waits_for_the_daemon_to_stop(settings: Settings) -> None:
    Database.open(settings).close()
    with (
        locked(settings.paths.root / "daemon.lock", "pid 1"),
        pytest.raises(migrate.Refused, match="Stop the daemon"),
    ):
        rebuild(settings)
