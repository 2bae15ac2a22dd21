"""The run's state follows what its attempt said at its end, once the process is gone.

`paused` is said only when the process is gone and its device memory with it; so the move waits for
the attempt's lock. Failures are left to the supervisor's recovery policy.
"""

from __future__ import annotations

from sqlalchemy.orm import Session

from server import attempts, states, tables
from server.states import Desired, State
from trainer.contract.exits import Reason

_ORDERLY = frozenset({"completed", "phase_ended", "paused", "cancelled"})


def follow(session: Session, run: tables.Run, attempt: tables.Attempt, now: float) -> None:
    """Move the run as the attempt's outcome says. Calling it again changes nothing."""
    if attempt.settled:
        return
    attempt.settled = True
    last = attempts.last_attempt(session, run.id)
    if attempt.outcome not in _ORDERLY or last is None or last.number != attempt.number:
        return
    reason = Reason(attempt.reason or Reason.requested)
    if run.state == State.cancelling or attempt.outcome == "cancelled":
        _reach(session, run, State.cancelled, reason, None, now)
    elif attempt.outcome == "paused":
        _pause(session, run, reason, attempt.message or None, now)
    else:
        _go_on(session, run, reason, attempt.message or None, now)


def _pause(
    session: Session, run: tables.Run, reason: Reason, message: str | None, now: float
) -> None:
    """Paused; queued again when the user changed their mind meanwhile."""
    asked = reason is Reason.requested
    _reach(session, run, State.paused, reason, None if asked else message, now)
    if run.state != State.paused:
        return
    if not asked:
        run.desired_state = Desired.paused
    elif run.desired_state == Desired.running:
        states.move(session, run, State.queued, Reason.requested, now=now)


def _go_on(
    session: Session, run: tables.Run, reason: Reason, message: str | None, now: float
) -> None:
    """The phase is over: the next one, or the end."""
    phase = attempts.current_phase(session, run)
    if phase is None:
        _reach(session, run, State.completed, Reason.finished, None, now)
    elif run.state == State.pausing and run.desired_state == Desired.paused:
        _reach(session, run, State.paused, Reason.requested, None, now)
    else:
        said = f"{phase.name} follows: steps {run.step:,} to {phase.end_step:,}"
        _reach(session, run, State.queued, Reason.requested, said, now, front=True)


def _reach(
    session: Session,
    run: tables.Run,
    after: State,
    reason: Reason,
    message: str | None,
    now: float,
    *,
    front: bool = False,
) -> None:
    """Move, by way of `running` where the trainer was quicker than its first step."""
    before = State(run.state)
    if before is State.starting and not states.can_move(before, after):
        states.move(session, run, State.running, Reason.requested, now=now)
    if states.can_move(State(run.state), after):
        run.deadline, run.escalation = None, 0
        states.move(session, run, after, reason, message, now=now, front=front)
        return
    session.add(
        tables.Event(
            run_id=run.id,
            kind="late_report",
            level="warning",
            message=f"the trainer ended as {after} while the run was {before}",
            unix_seconds=now,
        )
    )
