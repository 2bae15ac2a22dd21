"""A state has one writer: `states.move` for runs, `executions.move` for executions.

So have the outcome and the reason of an execution (`executions.conclude`), the reason of a run
(`states.explain`) and the answer to a command (`commands.answer`).
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import event

from server.database.db import Database
from server.database.tables import Execution, Run
from server.domain import runs
from server.settings import Settings
from tests.server import reporting

SERVER = Path(__file__).parents[2] / "server"
WRITERS = {"domain/states.py": 1, "domain/executions.py": 1}
BIRTHS = {"domain/run_rows.py", "domain/executions.py"}  # a new row has its first state


def _assignments(tree: ast.AST) -> Iterator[ast.Attribute]:
    for node in ast.walk(tree):
        targets = node.targets if isinstance(node, ast.Assign) else ()
        if isinstance(node, (ast.AugAssign, ast.AnnAssign)):
            targets = (node.target,)
        for target in targets:
            for one in ast.walk(target):
                if isinstance(one, ast.Attribute) and isinstance(one.ctx, ast.Store):
                    yield one


def _modules() -> Iterator[tuple[str, ast.AST]]:
    for path in sorted(SERVER.rglob("*.py")):
        if path.relative_to(SERVER).parts[0] not in ("web", "client", "cli"):  # know no rows
            yield path.relative_to(SERVER).as_posix(), ast.parse(path.read_text())


def test_only_move_assigns_a_state() -> None:
    found: dict[str, int] = {}
    for name, tree in _modules():
        written = [one for one in _assignments(tree) if one.attr == "state"]
        if written:
            found[name] = len(written)
    assert found == WRITERS


ENDINGS = {
    "outcome": {"domain/executions.py": ["conclude"], "domain/commands.py": ["answer"]},
    "reason": {"domain/executions.py": ["conclude"], "domain/states.py": ["explain"]},
    "reason_message": {"domain/states.py": ["explain"]},
    "log_tail": {"domain/executions.py": ["end"]},
    "exit_code": {"domain/executions.py": ["end"]},
}
FUNCTION = ast.FunctionDef | ast.AsyncFunctionDef
NO_ROWS = {"supervision/watch.py"}  # a Watch keeps what the launcher reports


@pytest.mark.parametrize("column", sorted(ENDINGS))
def test_one_function_writes_how_something_ended_and_why(column: str) -> None:
    found: dict[str, list[str]] = {}
    for name, tree in _modules():
        for function in (n for n in ast.walk(tree) if isinstance(n, FUNCTION)):
            written = [one for one in _assignments(function) if one.attr == column]
            if written and name not in NO_ROWS:
                found.setdefault(name, []).append(function.name)
    assert found == ENDINGS[column]


def test_only_new_rows_are_made_with_a_state_and_no_statement_updates_one() -> None:
    for name, tree in _modules():
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            called = getattr(call.func, "attr", getattr(call.func, "id", ""))
            given = {keyword.arg for keyword in call.keywords} & {"state", "outcome", "reason"}
            if called == "values" or (called in ("Run", "Execution") and name not in BIRTHS):
                assert not given, f"{name}:{call.lineno}"


def test_a_state_that_is_written_comes_from_move(db: Database, settings: Settings) -> None:
    """The same, as it happens: each write of a state has a `move` among its callers."""
    import sys

    writers: list[str] = []

    def note(target: object, value: object, before: object, _: object) -> None:
        frame, names = sys._getframe(), []
        while frame.f_back is not None:
            names.append(frame.f_code.co_name)
            frame = frame.f_back
        is_new = getattr(target, "id", None) is None or not isinstance(before, str)
        writers.append("new" if is_new else "move" if "move" in names else str(names[:8]))

    for table in (Run, Execution):
        event.listen(table.state, "set", note)
    try:
        reporter = reporting.attempt(db, settings, reporting.create(db))
        reporter.begin()
        reporter.steps(0, 2)
        reporter.ingest()
        with db.write() as session:
            runs.request_pause(session, session.get_one(Run, reporter.run_id), 5.0)
    finally:
        for table in (Run, Execution):
            event.remove(table.state, "set", note)
    assert set(writers) <= {"new", "move"}
    assert "move" in writers
