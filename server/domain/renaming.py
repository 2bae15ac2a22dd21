"""Renames a run: the id does not change, and everything stored under the name moves with it."""

from __future__ import annotations

from sqlalchemy import update
from sqlalchemy.orm import Session

from server.database import tables
from server.domain import events
from server.metrics import counters


def rename(session: Session, run: tables.Run, name: str, now: float) -> None:
    """Give `run` an unused name, with an event.

    Its Prometheus counters continue under the new name. Specs that take this run's tokenizer name
    it by its id from now on: the old name may become another run's.
    """
    before = run.name
    run.name = name
    session.flush()
    counters.rename(session, before, name)
    measured = tables.Throughput
    session.execute(update(measured).where(measured.run_name == before).values(run_name=name))
    for other in session.query(tables.Run).filter(
        tables.Run.spec["data"]["tokenizer"]["run"].as_string() == before
    ):
        other.spec = _with_tokenizer_of(other.spec, run.id)
        other.version += 1
    words, names = f"run {before} was renamed to {name}", {"before": before, "after": name}
    events.record(session, "renamed", words, run_id=run.id, data=names, now=now)


def _with_tokenizer_of(spec: dict, run_id: str) -> dict:
    tokenizer = {**spec["data"]["tokenizer"], "run": run_id}
    return {**spec, "data": {**spec["data"], "tokenizer": tokenizer}}
