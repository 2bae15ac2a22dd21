"""Commands to a trainer: rows that a verb writes and the supervisor delivers."""

from __future__ import annotations

import secrets

from sqlalchemy import select
from sqlalchemy.orm import Session

from server.database import tables
from trainer.contract.commands import Command

# Commands to resend to the next attempt if this one ended before it answered. A pause or a cancel
# is never a row: the run's state is the order, for each attempt anew.
CARRIED = frozenset({"end_phase", "save", "evaluate"})


def new_id() -> str:
    return f"cmd_{secrets.token_hex(8)}"


def send(
    session: Session, run: tables.Run, command: Command, now: float, job_id: str | None = None
) -> tables.CommandRow:
    row = tables.CommandRow(
        id=command.id,
        run_id=run.id,
        job_id=job_id,
        body=command.model_dump(mode="json"),
        created_at=now,
    )
    session.add(row)
    return row


def undelivered(session: Session, run_id: str) -> list[tables.CommandRow]:
    """Undelivered commands, in the order of the requests."""
    row = tables.CommandRow
    return list(
        session.scalars(
            select(row)
            .where(row.run_id == run_id, row.delivered_at.is_(None), row.done_at.is_(None))
            .order_by(row.created_at, row.id)
        )
    )


def carry_over(session: Session, run: tables.Run, now: float) -> None:
    """Resend the commands that still apply to a new attempt and drop the rest."""
    row = tables.CommandRow
    for command in session.scalars(select(row).where(row.run_id == run.id, row.done_at.is_(None))):
        kind = command.body.get("kind")
        if (kind == "end_phase" and run.pending_extend is None) or kind not in CARRIED:
            answer(command, "lapsed", now)
        else:
            command.delivered_at = None


def answer(command: tables.CommandRow, outcome: str, at: float) -> None:
    """Record what became of a command: done, failed or lapsed. at: in unix seconds."""
    command.done_at, command.outcome = at, outcome
