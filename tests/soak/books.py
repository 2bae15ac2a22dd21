"""Audit of rows against journals: every valid record is in the rows once, and nothing else is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from server.database.db import Database
from server.database.tables import Attempt, Checkpoint, Event, Point, Run
from server.domain import states
from server.domain.states import State
from trainer.contract import journal
from trainer.contract.rundir import OUTBOX, DataDir

# Records that each make exactly one event row of that kind.
_SAID = {"started": "started", "resumed": "resumed", "checkpoint_saved": "checkpoint"}


def records(path: Path) -> list[dict[str, Any]]:
    """Every valid record of a journal, in order."""
    reader, found = journal.JournalReader(path), []
    batch = reader.read()
    while batch.records:
        found += batch.records
        batch = reader.read(batch.offset, batch.next_seq)
    return found


def differences(db: Database, paths: DataDir) -> list[str]:
    """Differences between rows and journals, and illegal moves; empty if correct."""
    with db.read() as session:
        found = [
            f"{run.name}: {words}"
            for run in session.scalars(select(Run))
            for words in (*_of_attempts(session, run, paths), *illegal_moves(session, run))
        ]
    return found + [f"integrity_check: {words}" for words in db.integrity_check()]


def _of_attempts(session: Session, run: Run, paths: DataDir) -> Iterator[str]:
    for attempt in session.scalars(select(Attempt).where(Attempt.run_id == run.id)):
        path = paths.run(run.id).attempt(attempt.number) / OUTBOX
        said = records(path)
        for words in _of_one(session, attempt, said):
            yield f"attempt {attempt.number}: {words}"


def _of_one(session: Session, attempt: Attempt, said: list[dict[str, Any]]) -> Iterator[str]:
    if attempt.is_over and attempt.execution.outbox_seq != len(said):
        yield f"cursor at {attempt.execution.outbox_seq}, {len(said)} records"
    read = said[: attempt.execution.outbox_seq]
    want = {r["step"]: r["loss"] for r in read if r["kind"] == "step"}
    rows = select(Point.step, Point.loss).where(Point.attempt_id == attempt.id)
    have = {row.step: row.loss for row in session.execute(rows)}
    if lost := want.keys() - have.keys():
        yield f"{len(lost)} points lost, the first at step {min(lost)}"
    if extra := have.keys() - want.keys():
        yield f"{len(extra)} points from nowhere, the first at step {min(extra)}"
    if any(have[step] != want[step] for step in have.keys() & want.keys()):
        yield "points with another loss"
    yield from _of_events(session, attempt, read)


def _of_events(session: Session, attempt: Attempt, read: list[dict[str, Any]]) -> Iterator[str]:
    mine = (Event.run_id == attempt.run_id, Event.attempt_number == attempt.number)
    have = Counter(session.scalars(select(Event.kind).where(*mine)))
    want = Counter(r["kind"] for r in read)
    for kind, event in _SAID.items():
        if want[kind] != have[event]:
            yield f"{want[kind]} records {kind}, {have[event]} events"
    if have["report_gap"]:
        yield f"{have['report_gap']} gaps reported"
    names = {r["name"] for r in read if r["kind"] == "checkpoint_saved"}
    ours = select(Checkpoint.name).where(Checkpoint.attempt_id == attempt.id)
    if names != set(session.scalars(ours)):
        yield "checkpoint rows differ"


def illegal_moves(session: Session, run: Run) -> list[str]:
    """Moves of a run that the table forbids, or that do not begin where the previous one ended."""
    found, state = [], State.created
    moves = select(Event).where(Event.run_id == run.id, Event.kind == "state").order_by(Event.id)
    for event in session.scalars(moves):
        before, after = State(event.data["before"]), State(event.data["after"])
        if before is not state or not states.can_move(before, after):
            found.append(f"{state} was followed by {before} -> {after}")
        state = after
    if state is not State(run.state):
        found.append(f"it is {run.state}, its events end in {state}")
    return found
