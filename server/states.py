"""States of a run, the table of legal moves, and `move`, the only writer of a run's state.

`desired_state` is what the user asked; `state` is what is. A move and its event row are made in
the same transaction.
"""

from __future__ import annotations

import time
from enum import StrEnum
from typing import Any

from sqlalchemy.orm import Session

from server import tables
from server.errors import IllegalMove
from trainer.contract.exits import Reason


class State(StrEnum):
    created = "created"
    queued = "queued"
    preparing = "preparing"
    starting = "starting"
    running = "running"
    recovering = "recovering"
    pausing = "pausing"
    paused = "paused"
    cancelling = "cancelling"
    cancelled = "cancelled"
    completed = "completed"
    failed = "failed"


class Desired(StrEnum):
    created = "created"
    running = "running"
    paused = "paused"
    cancelled = "cancelled"


_ACTIVE = (State.queued, State.preparing, State.starting, State.running, State.recovering)

MOVES: dict[State, frozenset[State]] = {
    State.created: frozenset({State.queued, State.cancelled}),
    State.queued: frozenset({State.preparing, State.starting}),
    State.preparing: frozenset({State.starting, State.queued}),
    State.starting: frozenset({State.running, State.recovering, State.completed, State.paused}),
    State.running: frozenset({State.completed, State.recovering, State.paused, State.queued}),
    State.recovering: frozenset({State.starting, State.queued, State.preparing}),
    State.pausing: frozenset({State.paused, State.completed, State.failed, State.queued}),
    State.cancelling: frozenset({State.cancelled}),
    State.paused: frozenset({State.queued, State.cancelled}),
    State.failed: frozenset({State.queued, State.cancelled}),
    State.cancelled: frozenset({State.queued}),
    State.completed: frozenset({State.queued}),
}
for _state in _ACTIVE:
    MOVES[_state] |= {State.pausing, State.cancelling, State.failed}
MOVES[State.queued] |= {State.cancelled}
MOVES[State.pausing] |= {State.cancelling}

# States in which a process may be alive and the device may be taken.
OCCUPYING = frozenset(
    {State.starting, State.running, State.recovering, State.pausing, State.cancelling}
)
ENDED = frozenset({State.completed, State.failed, State.cancelled})
SETTLED = ENDED | {State.created, State.paused}


def can_move(before: State, after: State) -> bool:
    return after in MOVES[before]


def legal_from(state: State) -> list[str]:
    return sorted(MOVES[state])


def move(
    session: Session,
    run: tables.Run,
    after: State,
    reason: Reason,
    message: str | None = None,
    **data: Any,
) -> None:
    """Move `run` to `after`, with one event row. Raises IllegalMove when the table forbids it."""
    before = State(run.state)
    if not can_move(before, after):
        raise IllegalMove(
            f"run {run.name} is {before}: it cannot become {after}",
            state=before,
            legal=legal_from(before),
        )
    run.state, run.reason = after, reason
    run.reason_message = message or reason.sentence
    run.state_since = time.time()
    session.add(
        tables.Event(
            run_id=run.id,
            kind="state",
            level="error" if after is State.failed else "info",
            message=message or f"{before} -> {after}: {reason.sentence}",
            data={"before": before, "after": after, "reason": reason, **data},
            unix_seconds=run.state_since,
        )
    )
