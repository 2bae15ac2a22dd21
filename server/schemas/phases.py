"""Phases of a run and the attempts that served them."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from trainer.contract.extend import Joint
from trainer.contract.reasons import Reason
from trainer.contract.schedule import PhaseSchedule


class PhaseView(BaseModel):
    """superseded: a rewind set it aside. lineage_end: where it ends in the present lineage."""

    index: int
    name: str
    start_step: int
    end_step: int
    ended_at_step: int | None
    mode: str
    schedule: PhaseSchedule
    tokens: int
    joint: Joint | None
    from_checkpoint: str | None
    created_at: float
    started_at: float | None
    ended_at: float | None
    imported: bool
    superseded: bool = False
    lineage_end: int


class AttemptView(BaseModel):
    number: int
    phase_index: int
    started_at: float | None
    ended_at: float | None
    pid: int | None
    device: str
    devices: list[str] = []
    stage: str
    start_step: int | None
    last_step: int | None
    lineage_limit: int | None
    steps_done: int
    steps_lost: int
    slurm_job: str | None = None
    outcome: str | None
    reason: Reason | None
    message: str
    log_tail: str | None
    versions: dict[str, Any]
    exact_resume: str | None
    report_gap: str | None
