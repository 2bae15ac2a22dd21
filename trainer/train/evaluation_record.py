"""Records an evaluation in the run's state and journal."""

from __future__ import annotations

from typing import Any

from trainer.contract import events
from trainer.contract.evaluations import EvaluationKind
from trainer.train.session import Session


def record(
    session: Session,
    kind: EvaluationKind,
    value: float,
    name: str,
    settings: dict[str, Any],
    result: dict[str, Any],
    seconds: float,
) -> None:
    """Record an evaluation in the training state and report it as an event."""
    step = session.state.step
    session.state.evaluations[kind] = {"value": value, "identity": name, "step": step}
    session.reporter.emit(
        events.EvaluationResult(
            evaluation=kind,
            step=step,
            value=value,
            identity=name,
            settings=settings,
            result=result,
            seconds=seconds,
        )
    )
