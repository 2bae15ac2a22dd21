"""Phases of a run and the attempts that served them."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from trainer.contract.extend import Joint
from trainer.contract.reasons import Reason
from trainer.contract.schedule import PhaseSchedule


class PhaseView(BaseModel):
    """A planned stretch of a run, and where it ended."""

    index: int
    name: str
    """Name of the phase, unique within the run."""
    start_step: int
    end_step: int
    ended_at_step: int | None
    """Step at which the phase ended; null while it has not."""
    mode: str
    schedule: PhaseSchedule
    tokens: int
    joint: Joint | None
    from_checkpoint: str | None
    created_at: float
    started_at: float | None
    ended_at: float | None
    imported: bool
    """Whether the phase was imported."""
    superseded: bool = False
    lineage_end: int
    """Step at which the phase ends in the present lineage."""


class AttemptView(BaseModel):
    number: int
    """Attempt number, counted from 1 within the run; 0 is an import."""
    phase_index: int
    """Index of the phase, from 0."""
    started_at: float | None
    ended_at: float | None
    pid: int | None
    """Process id on the daemon's machine."""
    device: str
    devices: list[str] = []
    """Its devices, one for each process."""
    stage: str
    start_step: int | None
    last_step: int | None
    """Last step reported."""
    lineage_limit: int | None
    """Highest step of the attempt that counts in the present lineage."""
    steps_done: int
    """Steps made by the attempt."""
    steps_lost: int
    """Steps made by the attempt and set aside by a later one."""
    slurm_job: str | None = None
    """Number of the Slurm job, for an attempt on a cluster."""
    outcome: str | None
    """How the attempt ended: completed, paused, failed, …; null while it runs."""
    reason: Reason | None
    message: str
    log_tail: str | None
    """Last lines of the log of an attempt that failed."""
    versions: dict[str, Any]
    exact_resume: str | None
    report_gap: str | None
    """Why the attempt's report ends early; null when it is complete."""
