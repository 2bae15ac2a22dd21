"""Jobs: bounded work that is not training."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel

from trainer.contract.reasons import Reason


class JobView(BaseModel):
    id: str
    kind: str
    run: str | None
    where: str
    state: Literal["queued", "running", "completed", "failed", "cancelled"]
    """What the job is doing now."""
    reason: Reason | None
    message: str
    stage: str
    stage_detail: str
    fraction: float | None
    stage_since: float | None = None
    """When the stage began, in unix seconds."""
    exit_code: int | None = None
    """Exit code of the process, negative for a signal; null while it runs or if it is unknown."""
    params: dict[str, Any]
    """Parameters of the job."""
    result: dict[str, Any] | None
    created_at: float
    started_at: float | None
    ended_at: float | None
