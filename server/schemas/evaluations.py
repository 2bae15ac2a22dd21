"""Evaluations and samples of a run."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel


class EvaluationView(BaseModel):
    id: int
    kind: Literal["bpb", "core"]
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
