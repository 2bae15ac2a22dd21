"""Every column of the database has a reader."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

from server.database.db import Database
from server.database.tables import Attempt, Base, Run
from server.domain import executions
from server.metrics import rollups
from server.queries import eta, history
from server.settings import Settings
from tests.server import reporting
from trainer.contract.events import Stage
from trainer.contract.reasons import Reason

SERVER = Path(__file__).parents[2] / "server"

# Rows of these are read by their relatives: an execution through its attempt or job.
READ_THROUGH = {"Execution": {"Attempt", "Job"}}
# Read by SQL statements whose columns are named by the metrics' registry, or as text.
READ_IN_SQL = {
    "Point": {"step", "unix_seconds", "attempt_id", "more", *rollups.COLUMNS},
    "Rollup": {"attempt_id", "size", "bin", "first_step", "last_step", "unix_seconds", "values"},
}


def _loads() -> dict[str, set[str]]:
    """{class of a table: attributes that modules which name the class read}.

    Names, not types: it finds a column without any reader, not each misuse of a common name.
    """
    classes = {mapper.class_.__name__ for mapper in Base.registry.mappers}
    found: dict[str, set[str]] = defaultdict(set)
    for path in sorted(SERVER.rglob("*.py")):
        if path.name == "tables.py":
            continue
        nodes = list(ast.walk(ast.parse(path.read_text())))
        attributes = [n for n in nodes if isinstance(n, ast.Attribute)]
        named = {n.id for n in nodes if isinstance(n, ast.Name)} | {n.attr for n in attributes}
        for name in classes & named:
            found[name] |= {n.attr for n in attributes if isinstance(n.ctx, ast.Load)}
    return found


def test_every_column_is_read() -> None:
    loads, unread = _loads(), []
    for mapper in Base.registry.mappers:
        name = mapper.class_.__name__
        readers = READ_IN_SQL.get(name, set()).union(
            *(loads[one] for one in {name, *READ_THROUGH.get(name, ())})
        )
        keys = {column.name for column in mapper.local_table.primary_key}  # rows are found by them
        unread += [f"{name}.{c.key}" for c in mapper.column_attrs if c.key not in readers | keys]
    assert sorted(unread) == []


def test_a_stage_lasts_since_its_first_report(db: Database, settings: Settings) -> None:
    reporter = reporting.attempt(db, settings, reporting.create(db))
    reporter.begin()
    reporter.say(Stage(stage="evaluating", fraction=0.1))
    reporter.ingest()
    first = _stage_since(db, reporter.attempt_id)
    assert first is not None
    reporter.say(Stage(stage="evaluating", fraction=0.9))
    reporter.ingest()
    assert _stage_since(db, reporter.attempt_id) == first
    reporter.steps(0, 1)
    reporter.ingest()
    assert (_stage_since(db, reporter.attempt_id) or 0.0) > first


def _stage_since(db: Database, attempt_id: int) -> float | None:
    """As the progress and the attempts of the run show it."""
    with db.read() as session:
        attempt = session.get_one(Attempt, attempt_id)
        run = session.get_one(Run, attempt.run_id)
        shown = eta.progress(session, run).stage_since
        assert [a.stage_since for a in history.attempts(session, run)] == [shown]
        return shown


def test_an_attempt_shows_its_exit_code_and_the_fingerprint_of_its_environment(
    db: Database, settings: Settings
) -> None:
    reporter = reporting.attempt(db, settings, reporting.create(db))
    reporter.begin()
    reporter.ingest()
    with db.write() as session:
        attempt = session.get_one(Attempt, reporter.attempt_id)
        executions.end(session, attempt, "crashed", Reason.crashed, "", exit_code=-9)
        shown = history.attempts(session, session.get_one(Run, attempt.run_id))[0]
    assert (shown.exit_code, shown.fingerprint) == (-9, {"threads": 1})
