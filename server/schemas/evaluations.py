"""Evaluations and samples of a run."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from trainer.contract.evaluations import EvaluationKind


class EvaluationView(BaseModel):
    id: int
    kind: EvaluationKind
    step: int
    value: float
    """Measured value."""
    identity: str
    settings: dict[str, Any]
    result: dict[str, Any]
    seconds: float
    """Duration, in seconds."""
    unix_seconds: float
    attempt: int | None
    job: str | None
    best: bool
    superseded: bool


class SampleView(BaseModel):
    id: int
    step: int
    prompt: str
    text: str
    settings: dict[str, Any]
    unix_seconds: float
    job: str | None
    superseded: bool
