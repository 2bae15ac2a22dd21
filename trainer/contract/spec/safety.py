"""Checkpoint cadence and retention; recovery from crashes, reboots and non-finite losses."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from trainer.contract.spec.fields import Steps, Strict


class CheckpointSpec(Strict):
    every_seconds: Annotated[float, Field(ge=0.1, le=1e7)] | None = 1200.0
    """Seconds between checkpoints, at a step boundary; null is off."""
    every_steps: Steps | None = None
    """Steps between checkpoints; null is off."""
    keep_last: Annotated[int, Field(ge=2, le=10_000)] = 2
    """Number of newest checkpoints that are kept."""
    keep_every: Steps | None = None
    """Steps between checkpoints that are kept for good; null keeps none this way."""


MAX_REWINDS = 100


class RecoverySpec(Strict):
    on_crash: Literal["restart", "stop"] = "restart"
    """Whether a crashed trainer is restarted from the newest verified checkpoint."""
    max_attempts_without_progress: Annotated[int, Field(ge=1, le=1000)] = 3
    """Restarts in a row without a new step before the run fails."""
    on_reboot: Literal["resume", "wait"] = "resume"
    """Whether the run resumes by itself after the machine restarted."""
    on_non_finite: Literal["stop", "rewind"] = "stop"
    """On a NaN or infinite loss: stop, or rewind to a checkpoint and skip the batches."""
    max_rewinds: Annotated[int, Field(ge=1, le=MAX_REWINDS)] = 3
    """Maximum number of rewinds after non-finite losses."""
