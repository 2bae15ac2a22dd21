"""Applies the records of any execution to the rows; attempts and jobs add their own.

One object applies one batch, in the transaction that also moves the cursor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sqlalchemy.orm import Session

from server.database import tables
from server.domain import events as happenings
from server.domain import executions
from trainer.contract import events
from trainer.contract.rundir import ProcessIdentity

Handler = Callable[[Any, Any, float], None]


class Applied:
    """Applies one batch of an execution. row: the attempt or the job."""

    handlers: Mapping[type[events.TrainerEvent], Handler] = {}

    def __init__(self, session: Session, row: tables.Attempt | tables.Job) -> None:
        self.session, self.row, self.execution = session, row, row.execution

    def take(self, event: events.AnyEvent, seconds: float) -> None:
        """Apply one record, in the order of the journal; kinds without a handler are skipped."""
        handler = self.handlers.get(type(event)) or COMMON.get(type(event))
        if handler is not None:
            handler(self, event, seconds)
            self.session.flush()

    def finish(self) -> None:
        """End the batch."""

    def record(
        self,
        kind: str,
        message: str,
        seconds: float,
        *,
        level: str = "info",
        step: int | None = None,
        data: dict[str, Any] | None = None,
    ) -> None:
        about = happenings.about(self.row)
        happenings.record(
            self.session, kind, message, **about, level=level, step=step, data=data, now=seconds
        )

    def gap(self, why: str, record: dict[str, Any]) -> None:
        """Skip a complete record that cannot be applied, with an event."""
        message = f"a record of the journal was skipped: {why}"
        self.record("report_gap", message, self.last_known, level="warning", data=record)

    def stop(self, problem: str) -> None:
        """Record an unreadable position of the journal, as an event and on the execution."""
        message = f"the journal of {self.name} is unreadable from here on: {problem}"
        data = {"problem": problem}
        self.record("report_gap", message, self.last_known, level="error", data=data)

    @property
    def name(self) -> str:
        """Name of the journal's attempt or job, for messages."""
        return f"job {self.row.id}"

    @property
    def last_known(self) -> float:
        """Unix seconds of the last reported record, for events about the journal itself."""
        return self.execution.created_at

    def sample(self, event: events.SampleResult, seconds: float, **of_kind: Any) -> None:
        """Add the row of a sample."""
        settings = {"temperature": event.temperature, "top_k": event.top_k, "seed": event.seed}
        self.session.add(
            tables.Sample(
                run_id=self.row.run_id, step=event.step, prompt=event.prompt, text=event.text,
                settings=settings, unix_seconds=seconds, **of_kind,
            )
        )  # fmt: skip

    def evaluation(self, event: events.EvaluationResult, seconds: float, **of_kind: Any) -> None:
        """Add the row of an evaluation."""
        self.session.add(
            tables.Evaluation(
                run_id=self.row.run_id, kind=event.evaluation, step=event.step, value=event.value,
                identity=event.identity, settings=event.settings, result=event.result,
                seconds=event.seconds, unix_seconds=seconds, **of_kind,
            )
        )  # fmt: skip


# --- one function per kind -----------------------------------------------------------------------


def started(applied: Applied, event: events.Started, seconds: float) -> None:
    execution = applied.execution
    identity = ProcessIdentity(event.boot_id, event.pid, event.start_ticks)
    executions.reports_process(execution, identity)
    execution.started_at = execution.started_at or max(seconds, execution.created_at)


def stage(applied: Applied, event: events.Stage, seconds: float) -> None:
    executions.enter_stage(applied.execution, event.stage, seconds, event.detail, event.fraction)


def notice(applied: Applied, event: events.Notice, seconds: float) -> None:
    applied.record(
        event.code[:32], event.message, seconds, level=event.level, step=event.step, data=event.data
    )


def ended(applied: Applied, event: events.Ended, seconds: float) -> None:
    """Record the reported outcome; the supervisor ends the execution once its process is gone."""
    executions.report(applied.execution, event.outcome, event.reason, event.message)


COMMON: Mapping[type[events.TrainerEvent], Handler] = {
    events.Started: started,
    events.Stage: stage,
    events.Notice: notice,
    events.Ended: ended,
}
