"""Attempts as executions: their order, and how the run continues after their end."""

from __future__ import annotations

import time

from sqlalchemy import select
from sqlalchemy.orm import Session

from server.database.tables import Attempt, CommandRow, Execution, Phase, Run
from server.domain import attempts, checkpoint_lookup, checkpoints, gang, remedies
from server.domain.states import Desired, State, can_move, move
from server.launch import registry
from server.supervision import lifecycle, recovery
from server.supervision.context import SupervisorContext
from server.supervision.lifecycle import ExecutionKind
from server.supervision.post_mortem import PostMortem
from server.supervision.recovery import Ending, Verdict
from server.supervision.watch import Watch
from trainer.contract import orders
from trainer.contract.durable import write_durably
from trainer.contract.reasons import Reason
from trainer.contract.spec import RecoverySpec

MODULE = "trainer"

# States of a run that wait for the outcome of its attempt.
_WAITING = frozenset(
    {State.starting, State.running, State.recovering, State.pausing, State.cancelling}
)


# --- launch --------------------------------------------------------------------------------------


def launch(context: SupervisorContext, run_id: str, device: str) -> tuple[Execution, Watch] | None:
    """Start the next attempt of a run. None if the run's state changed in the meantime."""
    with context.db.write() as session:
        run = session.get_one(Run, run_id)
        if run.state != State.starting and not can_move(State(run.state), State.starting):
            return None
        devices = gang.of_run(run, context.devices)
        attempt = attempts.next_attempt(
            session,
            run,
            device=device,
            devices=() if gang.is_elsewhere(run) else devices,
            now=time.time(),
        )
        execution = attempt.execution
        order = attempts.build_order(session, run, attempt, context.settings, devices)
        execution.launcher = registry.name_for(order.num_ranks, order.spec.place)
        execution.handle = dict(context.launcher(execution).reserve())
        run.not_before = None
        if run.state != State.starting:
            move(session, run, State.starting, Reason.requested, attempt=attempt.number)
    watch = lifecycle.start(
        context,
        execution,
        MODULE,
        order,
        ranks=order.num_ranks,
        place=order.spec.place,
        uses_gpus=order.device.startswith("cuda"),
        prepare=lambda: _write_run(context, order),
    )
    return execution, watch


def _write_run(context: SupervisorContext, order: orders.AttemptOrder) -> None:
    run_dir = context.settings.paths.run(order.run_id)
    run_dir.root.mkdir(parents=True, exist_ok=True)
    write_durably(run_dir.spec, order.spec.model_dump_json(indent=1).encode())
    write_durably(run_dir.plan, order.plan.model_dump_json(indent=1).encode())


# --- close ---------------------------------------------------------------------------------------


def _settle(
    context: SupervisorContext, session: Session, attempt: Attempt, ending: Ending, _: PostMortem
) -> Ending:
    """Record what the attempt left: its checkpoints, and the end of its phase."""
    run = session.get_one(Run, attempt.run_id)
    checkpoints.record_found(session, run)
    if ending.outcome == "completed":
        _end_phase(session, run, attempt, ending)
    return ending


def _follow(
    context: SupervisorContext, session: Session, attempt: Attempt, ending: Ending, watch: Watch
) -> None:
    """Move the run, unless it has moved on and does not wait for this attempt."""
    run = session.get_one(Run, attempt.run_id)
    if State(run.state) in _WAITING:
        history = _history(session, run, attempt, watch)
        apply(session, run, recovery.follow(ending, history, context.backoff))


KIND = ExecutionKind(Attempt, _settle, _follow)


def _history(session: Session, run: Run, attempt: Attempt, watch: Watch) -> recovery.History:
    durable = checkpoint_lookup.durable_step(session, run.id)
    before = session.scalar(
        select(Execution.reason)
        .join(Attempt, Attempt.execution_id == Execution.id)
        .where(Attempt.run_id == run.id, Attempt.number == attempt.number - 1)
    )
    repeated = before == Reason.host_out_of_memory and durable <= run.best_failed_step
    return recovery.History(
        state=State(run.state),
        wants_to_run=run.desired_state == Desired.running,
        recovery=RecoverySpec.model_validate(run.spec.get("recovery", {})),
        durable_step=durable,
        failures=run.failures_without_progress,
        best_failed_step=run.best_failed_step,
        rewinds=run.rewinds,
        same_before=int(repeated),
        has_further_phase=attempts.current_phase(session, run) is not None,
        other_boot=watch.launcher.is_of_another_boot(attempt.handle),
        advice=remedies.out_of_memory(run),
        reason=Reason(run.reason),
        reason_message=run.reason_message,
    )


def _end_phase(session: Session, run: Run, attempt: Attempt, ending: Ending) -> None:
    """End the phase, even if only the exit record reports its end."""
    phase = session.scalar(
        select(Phase).where(Phase.run_id == run.id, Phase.index == attempt.phase_index)
    )
    if phase is not None and phase.ended_at_step is None:
        phase.ended_at = phase.ended_at or max(time.time(), phase.started_at or 0.0)
        phase.ended_at_step = ending.step if ending.step is not None else run.step
    session.flush()


def apply(session: Session, run: Run, verdict: Verdict) -> None:
    """Move the run by the verdict, through `running` where the table of moves requires it."""
    if not can_move(State(run.state), verdict.state) and run.state == State.starting:
        move(session, run, State.running, Reason.requested)
    front = {"front": True} if verdict.keeps_device else {}
    move(session, run, verdict.state, verdict.reason, verdict.message, **front)
    run.failures_without_progress = verdict.failures
    run.best_failed_step = verdict.best_failed_step
    run.not_before = time.time() + verdict.delay_seconds if verdict.delay_seconds else None
    if verdict.state is State.paused:
        run.desired_state = Desired.paused
    if verdict.skip_step is not None:
        run.skip_steps = [*run.skip_steps, [verdict.skip_step, verdict.skip_step]]
        run.rewinds += 1


# --- commands ------------------------------------------------------------------------------------


def mark_delivered(context: SupervisorContext, command_ids: list[str]) -> None:
    """Mark commands as delivered to the inbox of the running attempt."""
    with context.db.write() as session:
        for row in session.scalars(select(CommandRow).where(CommandRow.id.in_(command_ids))):
            row.delivered_at = time.time()
