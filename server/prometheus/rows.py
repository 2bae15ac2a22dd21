"""Prebuilt queries of a scrape: building a statement costs more than running it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy import Integer, Text, bindparam, case, func, or_, select, type_coerce
from sqlalchemy.orm import Session

from server.database import tables
from server.domain import checkpoint_lookup, executions
from server.domain.states import ENDED, OCCUPYING, State
from server.metrics import counters
from server.queries import eta
from server.queries.condition import condition
from server.queries.latest import latest
from trainer.contract.rundir import OUTBOX, DataDir

MAX_RUNS = 200
LIVE = (State.running, State.pausing)
ENDED_SECONDS = 3600.0
QUIET_SECONDS = 5.0  # without a step, after which it may stand still
PER_RUN = (
    counters.TOKENS, counters.STEPS, counters.LOST_STEPS, counters.RESTARTS, counters.YIELDS,
    counters.WAITING_SECONDS, counters.ENERGY,
    counters.CHECKPOINT_BYTES,
)  # fmt: skip


class Motion(NamedTuple):
    """Expected end of a run in unix seconds, and whether it makes no steps.

    moved, looked_at: the columns and the time of the look.
    """

    moved: object
    looked_at: float
    finish_at: float | None
    stands_still: bool


class Facts(NamedTuple):
    """Inputs of one run's metric lines; progress is JSON as it is stored."""

    id: str
    name: str
    state: str
    device: str
    step: int
    end_step: int
    tokens_seen: int
    last_step_at: float | None
    progress: str
    reason: str
    phase: str
    checkpoint_at: float | None
    model: str
    finish_at: float | None
    stands_still: bool


_run: Any = tables.Run.__table__.c
_phase: Any = tables.Phase.__table__.c
_kept: Any = tables.Checkpoint.__table__.c
_counter: Any = tables.Counter.__table__.c
_attempt: Any = tables.Attempt.__table__.c
_execution: Any = tables.Execution.__table__.c
_GIVEN = select(func.json_each(bindparam("ids")).table_valued("value").c.value)
_MOST = bindparam("most", type_=Integer)
_SHOWN = or_(
    _run.state.not_in([*ENDED, State.created]),
    _run.state.in_([*ENDED]) & (_run.ended_at > bindparam("since")),
)
_RUNS = (
    select(
        _run.id, _run.name, _run.state, _run.device, _run.step, _run.end_step, _run.tokens_seen,
        _run.last_step_at, type_coerce(_run.progress, Text), _run.reason,
    )
    .where(_SHOWN)
    .order_by(
        case((_run.state.in_(OCCUPYING), 0), (_run.state.not_in(ENDED), 1), else_=2),
        _run.queue_position,
        _run.ended_at.desc(),
    )
    .limit(_MOST)
)  # fmt: skip
_HOW_MANY = select(func.count()).where(_SHOWN)
_PHASES = (
    select(_phase.run_id, _phase.name)
    .where(_phase.run_id.in_(_GIVEN), _phase.started_at.is_not(None))
    .order_by(_phase.index)
)
_SAVED = (
    select(_kept.run_id, func.max(_kept.created_at))
    .where(_kept.run_id.in_(_GIVEN), checkpoint_lookup.IS_GOOD)
    .group_by(_kept.run_id)
)
_COUNTED = select(_counter.name, _counter.run, _counter.label, _counter.value).where(
    _counter.run.in_(_GIVEN), _counter.name.in_(PER_RUN)
)
_UNREAD = (
    select(_attempt.run_id, _attempt.number, _execution.outbox_offset)
    .join_from(tables.Execution.__table__, tables.Attempt.__table__)
    .where(executions.IS_OPEN, _execution.outbox_problem.is_(None), _attempt.number > 0)
    .limit(_MOST)
)


class Known(NamedTuple):
    """Values a scrape caches for the next one: depth as shown, and its motion, by run."""

    models: dict[str, str]
    motions: dict[str, Motion]


def runs(session: Session, now: float, known_before: Known) -> list[Facts]:
    """The runs to show: those with a process first, then waiting ones, then what ended last.

    known_before is kept by the caller from scrape to scrape.
    """
    connection = session.connection()
    since = now - ENDED_SECONDS
    rows = connection.execute(_RUNS, {"since": since, "most": MAX_RUNS}).all()
    ids = [row[0] for row in rows]
    known = {"ids": json.dumps(ids)}
    phases = dict(connection.execute(_PHASES, known).all())
    saved = dict(connection.execute(_SAVED, known).all())
    models, motions = known_before
    _name_models(session, ids, models)
    for gone in motions.keys() - {row[0] for row in rows if row[2] in LIVE}:
        del motions[gone]
    return [
        Facts._make(
            (
                *row,
                phases.get(row[0], ""),
                saved.get(row[0]),
                models.get(row[0], ""),
                *(_motion(session, row, now, motions)[2:] if row[2] in LIVE else (None, False)),
            )
        )
        for row in rows
    ]


def _motion(session: Session, row: Any, now: float, known: dict[str, Motion]) -> Motion:
    """As in GET …/progress. It reads the run's plan, so it is kept until the run has moved on; of
    one that may stand still, for a few seconds."""
    run_id, moved, last_step_at = row[0], tuple(row[4:9]), row[7]
    found = known.get(run_id)
    if found is not None and found.moved == moved:
        is_quiet = last_step_at is None or now - last_step_at >= QUIET_SECONDS
        if not is_quiet or now - found.looked_at < QUIET_SECONDS:
            return found
    run = session.get_one(tables.Run, run_id)
    stands = latest(session, run_id)
    still = condition(session.info["paths"].run(run_id), run, stands.attempt, now)
    left = eta.remaining(session, run, stands, still)
    end = eta.expected_end(session, run, stands.attempt, left, now)
    known[run_id] = Motion(moved, now, end.finish_at if end else None, still is not None)
    return known[run_id]


def _name_models(session: Session, ids: list[str], models: dict[str, str]) -> None:
    """Depth by run, read once: a model's shape never changes, and specs are wide."""
    for gone in models.keys() - set(ids):
        del models[gone]
    run, depth = tables.Run, tables.Run.spec["model"]["depth"].as_integer()
    new = [run_id for run_id in ids if run_id not in models]
    if new:
        found = session.execute(select(run.id, depth).where(run.id.in_(new)))
        models.update({run_id: f"d{layers}" for run_id, layers in found})


def how_many(session: Session, now: float) -> int:
    """Runs that would be shown if there were no limit."""
    return session.connection().scalar(_HOW_MANY, {"since": now - ENDED_SECONDS}) or 0


def counted(session: Session, names: list[str]) -> dict[str, list[tuple[str, str, float]]]:
    """{counter: [(run, label, value)]} of the runs that are shown."""
    rows = session.connection().execute(_COUNTED, {"ids": json.dumps(names)})
    held: dict[str, dict[tuple[str, str], float]] = {
        # from 0, so that the first increase is seen; restarts have no reason before the first
        name: {} if name in counters.WITH_REASON else {(run, ""): 0.0 for run in names}
        for name in PER_RUN
    }
    for name, run, label, value in rows:
        held[name][run, label] = value
    return {name: [(*k, v) for k, v in values.items()] for name, values in held.items()}


def unread(session: Session) -> list[tuple[str, int, int]]:
    """(run id, attempt, offset) of every journal that may still grow."""
    rows = session.connection().execute(_UNREAD, {"most": MAX_RUNS})
    return [(row[0], row[1], row[2]) for row in rows]


def lag(data_dir: Path, run_id: str, attempt: int, offset: int, now: float) -> float:
    """Seconds since the first record behind the cursor was written; 0 when all are read."""
    path = DataDir(data_dir).run(run_id).attempt(attempt) / OUTBOX
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return 0.0
    try:
        line, whole, _ = os.pread(fd, 65_536, offset).partition(b"\n")
        return max(0.0, now - float(json.loads(line)["ts"])) if whole else 0.0
    except (OSError, ValueError, KeyError, TypeError):
        return 0.0
    finally:
        os.close(fd)
