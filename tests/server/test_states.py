"""Each legal move is made with its event; each other one is refused and changes nothing."""

from __future__ import annotations

import itertools

import pytest

from server.database import tables
from server.database.db import Database
from server.domain import runs, states
from server.domain.states import MOVES, State
from server.errors import IllegalMove
from tests.server.reporting import create
from trainer.contract.reasons import Reason

PAIRS = list(itertools.product(State, State))


def _in(db: Database, state: State) -> str:
    run_id = create(db)
    with db.write() as session:
        session.get_one(tables.Run, run_id).state = state
    return run_id


@pytest.mark.parametrize(("before", "after"), [p for p in PAIRS if p[1] in MOVES[p[0]]])
def test_a_legal_move_and_its_event_are_one(db: Database, before: State, after: State) -> None:
    run_id = _in(db, before)
    with db.write() as session:
        states.move(session, session.get_one(tables.Run, run_id), after, Reason.crashed, now=7.0)
    with db.read() as session:
        run = session.get_one(tables.Run, run_id)
        assert (run.state, run.reason, run.state_since) == (after, "crashed", 7.0)
        assert (run.queue_position is not None) == (after is State.queued)
        assert (run.ended_at is not None) == (after in states.ENDED)
        event = session.query(tables.Event).order_by(tables.Event.id.desc()).first()
        assert event is not None
        assert event.data == {"before": before, "after": after, "reason": "crashed"}


@pytest.mark.parametrize("reason", [*sorted(states.YIELDS), Reason.requested])
def test_the_event_of_a_pause_says_whether_it_is_a_yield(db: Database, reason: Reason) -> None:
    run_id = _in(db, State.running)
    with db.write() as session:
        states.move(session, session.get_one(tables.Run, run_id), State.pausing, reason)
    with db.read() as session:
        event = session.query(tables.Event).order_by(tables.Event.id.desc()).first()
        assert event is not None
        assert event.data.get("is_yield", False) is (reason in states.YIELDS)


@pytest.mark.parametrize(("before", "after"), [p for p in PAIRS if p[1] not in MOVES[p[0]]])
def test_an_illegal_move_changes_nothing(db: Database, before: State, after: State) -> None:
    run_id = _in(db, before)
    with db.read() as session:
        events = session.query(tables.Event).count()
    with pytest.raises(IllegalMove) as caught, db.write() as session:
        states.move(session, session.get_one(tables.Run, run_id), after, Reason.requested)
    assert caught.value.extra["state"] == before
    with db.read() as session:
        assert session.get_one(tables.Run, run_id).state == before
        assert session.query(tables.Event).count() == events


# What each verb does in each state: the state after it, "same" for a repeat, None for a refusal.
# fmt: off
VERBS: dict[str, dict[str, str | None]] = {
    "start": {
        "created": "queued", "queued": "same", "preparing": "same", "starting": "same",
        "running": "same", "recovering": "same", "pausing": None, "paused": None,
        "cancelling": None, "cancelled": None, "completed": None, "failed": None,
    },
    "request_pause": {
        "created": None, "queued": "pausing", "preparing": "pausing", "starting": "pausing",
        "running": "pausing", "recovering": "pausing", "pausing": "same", "paused": "same",
        "cancelling": None, "cancelled": None, "completed": None, "failed": None,
    },
    "resume": {
        "created": None, "queued": "same", "preparing": "same", "starting": "same",
        "running": "same", "recovering": "same", "pausing": "pausing", "paused": "queued",
        "cancelling": None, "cancelled": "queued", "completed": None, "failed": "queued",
    },
    "request_cancel": {
        "created": "cancelled", "queued": "cancelling", "preparing": "cancelling",
        "starting": "cancelling", "running": "cancelling", "recovering": "cancelling",
        "pausing": "cancelling", "paused": "cancelled", "cancelling": "same",
        "cancelled": "same", "completed": None, "failed": "cancelled",
    },
    "delete": {
        "created": "gone", "queued": None, "preparing": None, "starting": None, "running": None,
        "recovering": None, "pausing": None, "paused": "gone", "cancelling": None,
        "cancelled": "gone", "completed": "gone", "failed": "gone",
    },
}
# fmt: on
_WANTS = {"pausing": "paused", "paused": "paused", "cancelling": "cancelled", "created": "created"}


@pytest.mark.parametrize(
    ("verb", "before"), [(verb, state) for verb in VERBS for state in VERBS[verb]]
)
def test_a_verb_in_a_state(db: Database, verb: str, before: str) -> None:
    run_id, expected = _in(db, State(before)), VERBS[verb][before]
    with db.write() as session:
        run = session.get_one(tables.Run, run_id)
        run.desired_state = _WANTS.get(before, "running")
        run.queue_position = None
    if expected is None:
        with pytest.raises(IllegalMove) as caught, db.write() as session:
            getattr(runs, verb)(session, session.get_one(tables.Run, run_id), now=9.0)
        assert caught.value.extra["state"] == before
        assert verb.removeprefix("request_") not in caught.value.extra["legal"]
        return
    with db.write() as session:
        changed = getattr(runs, verb)(session, session.get_one(tables.Run, run_id), now=9.0)
    with db.read() as session:
        run = session.get(tables.Run, run_id)
        if expected == "gone":
            assert run is None
            return
        assert run is not None
        assert changed is (expected != "same")
        assert run.state == (before if expected == "same" else expected)


def test_the_table_says_what_the_verbs_do() -> None:
    for verb, by_state in VERBS.items():
        for state, result in by_state.items():
            said = verb.removeprefix("request_") in states.VERBS[State(state)]
            assert said == (result is not None), (verb, state)


def test_the_queue_keeps_its_order_and_has_a_front(db: Database) -> None:
    ids = [create(db, f"run{i}") for i in range(3)]
    with db.write() as session:
        run = session.get_one(tables.Run, ids[2])
        states.move(session, run, State.preparing, Reason.requested)
        assert run.queue_position is None
        states.move(session, run, State.queued, Reason.requested, front=True)
    with db.read() as session:
        rows = session.query(tables.Run).order_by(tables.Run.queue_position).all()
        assert [row.id for row in rows] == [ids[2], ids[0], ids[1]]
