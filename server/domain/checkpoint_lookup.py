"""Checkpoint lookup: the existing and the usable ones, the newest, the best, one by name or step.

existing: not deleted. usable: existing and good; of the present lineage where nothing else is said.
No other module states these conditions.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import and_, bindparam, select
from sqlalchemy.orm import Session

from server.database import tables

_table = tables.Checkpoint
IS_GOOD = _table.bad.is_(None)
EXISTS = _table.deleted_at.is_(None)
IS_THERE = and_(EXISTS, IS_GOOD)
IS_USABLE = and_(IS_THERE, _table.superseded.is_(False))
# Used many times a second; building a statement takes longer than running it.
_NEWEST_FIRST = (_table.step.desc(), _table.id.desc())
_USABLE = (
    select(_table).where(_table.run_id == bindparam("run"), IS_USABLE).order_by(*_NEWEST_FIRST)
)
NEWEST = _USABLE.limit(1)
_THERE = (
    select(_table)
    .where(_table.run_id == bindparam("run"), IS_THERE)
    .order_by(_table.superseded, *_NEWEST_FIRST)
)


def existing(session: Session, run_id: str, *, superseded: bool = False) -> list[tables.Checkpoint]:
    """Checkpoints that are not deleted, usable or not, newest first. superseded: those too."""
    query = select(_table).where(_table.run_id == run_id, EXISTS).order_by(*_NEWEST_FIRST)
    if not superseded:
        query = query.where(_table.superseded.is_(False))
    return list(session.scalars(query))


def usable(session: Session, run_id: str) -> list[tables.Checkpoint]:
    """Usable checkpoints of the current lineage, newest first."""
    return list(session.scalars(_USABLE, {"run": run_id}))


def newest(session: Session, run_id: str) -> tables.Checkpoint | None:
    """The newest usable checkpoint: a resume starts from it."""
    return session.scalar(NEWEST, {"run": run_id})


def of_all_runs(session: Session, most: int) -> list[tuple[tables.Checkpoint, tables.Run]]:
    """Usable checkpoints of all runs with their run, the latest first."""
    query = select(_table, tables.Run).join(tables.Run, tables.Run.id == _table.run_id)
    rows = session.execute(query.where(IS_USABLE).order_by(_table.id.desc()).limit(most))
    return [(one, run) for one, run in rows]


def pinned_names(session: Session, run_id: str, *, any_lineage: bool = False) -> list[str]:
    """Names of the pinned usable checkpoints, newest first; any_lineage: of all existing ones."""
    which = EXISTS if any_lineage else IS_USABLE
    query = select(_table.name).where(_table.run_id == run_id, _table.pinned.is_(True), which)
    return list(session.scalars(query.order_by(*_NEWEST_FIRST)))


def is_there(checkpoint: tables.Checkpoint) -> bool:
    """True if it is usable in some lineage."""
    return checkpoint.deleted_at is None and checkpoint.bad is None


def durable_step(session: Session, run_id: str) -> int:
    """The step of the newest usable checkpoint; 0 without one."""
    found = newest(session, run_id)
    return found.step if found is not None else 0


def of_any_lineage(session: Session, run_id: str) -> list[tables.Checkpoint]:
    """Usable checkpoints, the current lineage's before superseded ones; each newest first."""
    return list(session.scalars(_THERE, {"run": run_id}))


def best(found: Sequence[tables.Checkpoint]) -> tables.Checkpoint | None:
    """The checkpoint with the lowest val bpb; None if none was measured."""
    measured = [one for one in found if one.val_bpb is not None]
    return min(measured, key=lambda one: (one.val_bpb, one.id), default=None)


def first(
    found: Sequence[tables.Checkpoint], *, name: str | None = None, step: int | None = None
) -> tables.Checkpoint | None:
    """The first of a name or, without one, of a step."""
    for one in found:
        if one.name == name if name is not None else one.step == step:
            return one
    return None


def named(
    session: Session, run_id: str, name: str | None, step: int | None
) -> tables.Checkpoint | None:
    """The usable checkpoint of a name or step, preferably of the current lineage."""
    return first(of_any_lineage(session, run_id), name=name, step=step)


def existing_by_name(session: Session, run_id: str, name: str) -> tables.Checkpoint | None:
    """The checkpoint of a name, usable or not; None if it is deleted."""
    query = select(_table).where(_table.run_id == run_id, _table.name == name, EXISTS)
    return session.scalar(query)


def known_names(session: Session, run_id: str) -> set[str]:
    """Names of all rows, including deleted ones."""
    return set(session.scalars(select(_table.name).where(_table.run_id == run_id)))


def by_name(session: Session, run_id: str, name: str | None) -> tables.Checkpoint | None:
    """The row of a name, including deleted and unusable ones."""
    return session.scalar(select(_table).where(_table.run_id == run_id, _table.name == name))


def at_step(
    session: Session, run_id: str, step: int, *, attempt_id: int | None = None
) -> tables.Checkpoint | None:
    """The row at a step, of one attempt or the newest of the lineage; including unusable ones."""
    query = select(_table).where(_table.run_id == run_id, _table.step == step)
    if attempt_id is not None:
        return session.scalar(query.where(_table.attempt_id == attempt_id))
    current = query.where(_table.superseded.is_(False)).order_by(_table.id.desc())
    return session.scalars(current).first()


def any_in_lineage(session: Session, run_id: str) -> bool:
    """True if the lineage ever had a checkpoint, usable or not: then no silent start from step
    0."""
    query = select(_table.id).where(_table.run_id == run_id, _table.superseded.is_(False))
    return session.scalar(query.limit(1)) is not None
