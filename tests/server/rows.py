"""Rows of attempts and jobs as tests want them, with their executions."""

from __future__ import annotations

from typing import Any

from server.database import tables
from server.domain.executions import ExecutionState

_OF_EXECUTION = {column.name for column in tables.Execution.__table__.columns} - {"id", "kind"}


def attempt(**columns: Any) -> tables.Attempt:
    """An attempt that runs, unless it has an end or an outcome."""
    over = columns.get("ended_at") is not None or columns.get("outcome") is not None
    given = {"state": "ended" if over else "running", "place": columns["device"], **columns}
    directory = f"runs/{columns['run_id']}/attempts/{columns['number']:04d}"
    return tables.Attempt(
        execution=_execution("attempt", directory, given),
        **{key: value for key, value in columns.items() if key not in _OF_EXECUTION},
    )


def job(**columns: Any) -> tables.Job:
    """A job in a state as the API names it."""
    given = {"place": columns.get("where", "cpu"), "stage": "queued", **columns}
    made = tables.Job(
        execution=_execution("job", f"jobs/{columns['id']}", given),
        **{key: value for key, value in columns.items() if key not in _OF_EXECUTION},
    )
    put(made, columns["state"])
    return made


def put(job: tables.Job, state: str) -> None:
    """Put a job into a state as the API names it, whatever it was before."""
    over = state not in set(ExecutionState)
    job.execution.state = "ended" if over else state
    job.execution.outcome = state if over else None


def _execution(kind: str, directory: str, given: dict[str, Any]) -> tables.Execution:
    own = {key: value for key, value in given.items() if key in _OF_EXECUTION}
    return tables.Execution(kind=kind, directory=directory, **own)
