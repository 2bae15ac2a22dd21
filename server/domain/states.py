"""States of a run, the table of legal moves, and `move`, the only writer of a run's state.

`desired_state` is what the user asked; `state` is what is. A move and its event row are made in
the same transaction.
"""

from __future__ import annotations

import time
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from server.database import tables
from server.domain import events
from server.errors import IllegalMove
from server.metrics import counters
from server.schemas.states import Desired as Desired
from server.schemas.states import State as State
from trainer.contract import units
from trainer.contract.reasons import Reason

_ACTIVE = (State.queued, State.preparing, State.starting, State.running, State.recovering)

MOVES: dict[State, frozenset[State]] = {
    State.created: frozenset({State.queued, State.cancelled}),
    State.queued: frozenset({State.preparing, State.starting}),
    State.preparing: frozenset({State.starting, State.queued}),
    State.starting: frozenset({State.running, State.recovering, State.completed, State.paused}),
    State.running: frozenset({State.completed, State.recovering, State.paused, State.queued}),
    State.recovering: frozenset(
        {State.starting, State.queued, State.preparing, State.completed, State.paused}
    ),
    State.pausing: frozenset({State.paused, State.completed, State.failed, State.queued}),
    State.cancelling: frozenset({State.cancelled}),
    State.paused: frozenset({State.queued, State.cancelled}),
    State.failed: frozenset({State.queued, State.cancelled}),
    State.cancelled: frozenset({State.queued}),
    State.completed: frozenset({State.queued, State.paused}),
}
for _state in _ACTIVE:
    MOVES[_state] |= {State.pausing, State.cancelling, State.failed}
MOVES[State.queued] |= {State.cancelled}
MOVES[State.pausing] |= {State.cancelling}

# States in which a process may be alive and the device may be taken.
OCCUPYING = frozenset(
    {State.starting, State.running, State.recovering, State.pausing, State.cancelling}
)
# Reasons for which a run yields and comes back by itself, as its history names them.
YIELDS = {
    Reason.preempted: "yielded to a run of higher priority",
    Reason.outside_hours: "paused outside its hours",
    Reason.device_wanted: "yielded to another program",
    Reason.device_hot: "paused for heat",
}
ENDED = frozenset({State.completed, State.failed, State.cancelled})
SETTLED = ENDED | {State.created, State.paused}


# What a user may ask in each state, whether or not it changes anything.
VERBS: dict[State, frozenset[str]] = {
    State.created: frozenset({"start", "extend", "cancel", "delete"}),
    State.queued: frozenset({"start", "resume", "pause", "extend", "cancel"}),
    State.preparing: frozenset({"start", "resume", "pause", "extend", "cancel"}),
    State.starting: frozenset({"start", "resume", "pause", "extend", "cancel"}),
    State.running: frozenset({"start", "resume", "pause", "extend", "cancel"}),
    State.recovering: frozenset({"start", "resume", "pause", "extend", "cancel"}),
    State.pausing: frozenset({"pause", "resume", "extend", "cancel"}),
    State.paused: frozenset({"pause", "resume", "extend", "cancel", "delete"}),
    State.cancelling: frozenset({"cancel"}),
    State.cancelled: frozenset({"cancel", "resume", "extend", "delete"}),
    State.completed: frozenset({"extend", "delete"}),
    State.failed: frozenset({"resume", "extend", "cancel", "delete"}),
}

# Where a verb repeats what the state already says: it is legal, and changes nothing.
REPEATS: dict[str, frozenset[State]] = {
    "start": frozenset(_ACTIVE),
    "resume": frozenset(_ACTIVE),
    "pause": frozenset({State.paused, State.pausing}),
    "cancel": frozenset({State.cancelled, State.cancelling}),
}

# Requests beside the verbs, and the states in which they can succeed. An evaluation outside of the
# running trainer takes a saved checkpoint; settings that may change may always change.
REQUESTS: dict[str, frozenset[State]] = {
    "checkpoint": frozenset({State.starting, State.running}),
    "evaluate": frozenset(State) - {State.created, State.queued, State.preparing},
    "edit": frozenset(State),
}


def require(run: tables.Run, verb: str) -> State:
    """The run's state when `verb` may be asked in it. Raises IllegalMove naming what may."""
    state = State(run.state)
    if verb not in VERBS[state]:
        legal = sorted(VERBS[state])
        raise IllegalMove(
            f"run {run.name} is {state}: it cannot {verb} now",
            hint=f"Possible now: {', '.join(legal)}.",
            state=state,
            legal=legal,
        )
    return state


def can_move(before: State, after: State) -> bool:
    return after in MOVES[before]


def move(
    session: Session,
    run: tables.Run,
    after: State,
    reason: Reason,
    message: str | None = None,
    *,
    now: float | None = None,
    front: bool = False,
    is_found: bool = False,
    **data: Any,
) -> None:
    """Move `run` to `after`, with one event row. Raises IllegalMove when the table forbids it.

    A run that becomes queued goes to the end of the queue, or to its front. door: one of DOORS, of
    a request. by: names of what it yields to. is_found: the state was not reached here but read
    from an import or from the disk: any is legal, and it is no news.
    """
    before = State(run.state)
    if not is_found and not can_move(before, after):
        raise IllegalMove(
            f"run {run.name} is {before}: it cannot become {after}",
            state=before,
            legal=sorted(VERBS[before]),
        )
    door = data.get("door") or _door(session, run, after)
    if reason == Reason.requested and door in DOORS and after in _ASKED:
        message, data["detail"] = None, message
    run.state = after
    explain(run, reason, message or sentence(after, reason, door))
    run.state_since = time.time() if now is None else now
    run.version = (run.version or 0) + 1
    run.queue_position = _queue_place(session, front) if after is State.queued else None
    run.ended_at = max(run.state_since, run.started_at or 0.0) if after in ENDED else None
    if after is State.running and run.started_at is None and not is_found:
        run.started_at = run.state_since
    if is_found:
        return
    if after is State.pausing and reason in YIELDS:
        data["is_yield"] = True
        counters.add(session, counters.YIELDS, run.name, 1, reason)
    if after is State.running and (left := _made_way(session, run)) is not None:
        waited = max(0.0, run.state_since - left.unix_seconds)
        counters.add(session, counters.WAITING_SECONDS, run.name, waited, left.data["reason"])
        message = (
            f"It yielded at {units.zoned(left.unix_seconds)} ({left.message.rstrip('.')}) and "
            f"resumed training at {units.zoned(run.state_since)}"
        )
        data |= {"made_way_at": left.unix_seconds, "made_way_for": left.data["reason"]}
    events.record(
        session, "state", message or f"{before} -> {after}: {run.reason_message}",
        run_id=run.id, level="error" if after is State.failed else "info", now=run.state_since,
        data={"before": before, "after": after, "reason": reason, **data},
    )  # fmt: skip


def explain(run: tables.Run, reason: Reason, message: str) -> None:
    """Change why the run is in its state, which stays."""
    run.reason, run.reason_message = reason, message


def _made_way(session: Session, run: tables.Run) -> tables.Event | None:
    """The event of making way that this return ends; None where it comes from elsewhere."""
    event = tables.Event
    found = session.scalar(
        select(event)
        .where(
            event.run_id == run.id,
            event.kind == "state",
            event.data["after"].as_string().in_([State.pausing, State.running]),
        )
        .order_by(event.id.desc())
        .limit(1)
    )
    if found is None or found.data["after"] != State.pausing:
        return None
    return found if found.data.get("reason") in YIELDS else None


def sentence(state: State, reason: Reason, door: str | None = None) -> str:
    """Why a run is in this state; of what was requested, what it is doing about it."""
    if reason != Reason.requested:
        return reason.sentence
    if door in DOORS and state in _ASKED:
        return _ASKED[state].format(DOORS[door])
    return _REQUESTED.get(state, reason.sentence)


# Which way a request came in, as it is written.
DOORS = {
    "page": "on the page",
    "cli": "on the command line",
    "client": "with the Python client",
    "api": "through the API",
}
_ASKED = {
    State.pausing: "Pausing, asked {}: a checkpoint is saved first.",
    State.paused: "Paused by you {}.",
    State.cancelling: "Cancelling, asked {}.",
    State.cancelled: "Cancelled by you {}.",
}
_ASKED_IN = {State.paused: State.pausing, State.cancelled: State.cancelling}


def _door(session: Session, run: tables.Run, after: State) -> str | None:
    """The door of the request that this move fulfils."""
    if run.state != _ASKED_IN.get(after):
        return None
    event = tables.Event
    query = select(event.data).where(event.run_id == run.id, event.kind == "state")
    newest = session.scalar(query.order_by(event.id.desc()).limit(1))
    return (newest or {}).get("door")


_REQUESTED = {
    State.created: "Not started yet.",
    State.queued: "Waiting to start.",
    State.preparing: "Preparing its data.",
    State.starting: "Starting.",
    State.running: "Training.",
    State.pausing: "Pausing: a checkpoint is saved first.",
    State.paused: "Paused on request.",
    State.cancelling: "Cancelling.",
    State.cancelled: "Cancelled on request.",
}


def _queue_place(session: Session, front: bool) -> int:
    edge = func.min if front else func.max
    taken = session.scalar(select(edge(tables.Run.queue_position)))
    return 0 if taken is None else taken - 1 if front else taken + 1
