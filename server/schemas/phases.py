"""Phases of a run and their attempts."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from trainer.contract.extend import Joint
from trainer.contract.reasons import Reason
from trainer.contract.schedule import PhaseSchedule


class PhaseView(BaseModel):
    """A phase of a run: a planned stretch of steps, and where it ended."""

    index: int
    name: str
    """Name of the phase, unique within the run."""
    start_step: int
    end_step: int
    ended_at_step: int | None
    """Step at which the phase ended; null until it has."""
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
    """Step at which the phase ends in the current lineage."""


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
    """Devices of the attempt, one per process."""
    stage: str
    stage_since: float | None = None
    """When the stage began, in unix seconds."""
    start_step: int | None
    last_step: int | None
    """Last step reported."""
    lineage_limit: int | None
    """Last step of the attempt that belongs to the current lineage."""
    steps_done: int
    """Number of steps the attempt trained."""
    steps_lost: int
    """Number of the attempt's steps that a later attempt superseded."""
    slurm_job: str | None = None
    """Slurm job id, for an attempt on a cluster."""
    outcome: str | None
    """How the attempt ended: completed, paused, failed, …; null while it runs."""
    reason: Reason | None
    message: str
    exit_code: int | None = None
    """Exit code of the process, negative for a signal; null while it runs or if it is unknown."""
    log_tail: str | None
    """Last lines of the log of an attempt that failed."""
    versions: dict[str, Any]
    fingerprint: dict[str, Any] = {}
    """Hardware, software and numeric settings of the attempt, which decide its bits."""
    exact_resume: str | None
    report_gap: str | None
    """Why the attempt's report ends early; null if it is complete."""
