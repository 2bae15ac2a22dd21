"""Progress of a run now: step, loss, throughput, ETA, its devices and their ranks."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel

from server.schemas.checkpoints import CheckpointBrief
from server.schemas.runs import Condition
from server.schemas.states import Desired, State
from server.schemas.system import PeakFlops
from trainer.contract.events import RankRow
from trainer.contract.reasons import Reason


class EtaParts(BaseModel):
    training: float
    evaluation: float
    saving: float


class Vram(BaseModel):
    allocated: int | None = None
    reserved: int | None = None
    peak: int | None = None
    total: int | None = None


class RankView(RankRow):
    """GET /v1/runs/{id}/ranks: one process of a run on several devices, as its trainer reported it
    last."""

    seen_at: float


class Progress(BaseModel):
    """GET /v1/runs/{id}/progress.

    eta_source: which rate the ETA is taken from; the ETA is null for a run that has ended.
    devices: of the newest attempt. vram_bytes, power_watts: of all of them; ranks: of each.
    """

    id: str
    name: str
    state: State
    desired_state: Desired
    reason: Reason
    reason_message: str
    advice: str
    phase: str | None
    attempt: int | None
    stage: str | None
    stage_detail: str
    stage_fraction: float | None
    step: int
    end_step: int
    fraction: float
    tokens_seen: int
    loss: float | None
    loss_smooth: float | None
    lr_multiplier: float | None
    momentum: float | None
    weight_decay: float | None
    grad_norm: float | None
    tokens_per_second: float | None
    step_seconds: float | None
    mfu: float | None
    mfu_causal: float | None
    peak_flops: PeakFlops | None
    vram_bytes: Vram
    power_watts: float | None
    temperature_celsius: float | None
    energy_joules: float | None
    eta_seconds: float | None
    finish_at: float | None
    energy_left_joules: float | None = None
    cost_left: float | None = None
    eta_parts: EtaParts | None
    eta_source: str | None
    training_seconds: float | None = None
    started_at: float | None = None
    ended_at: float | None = None
    condition: Condition | None = None
    last_step_at: float | None
    last_checkpoint: CheckpointBrief | None
    val_bpb: float | None
    core: float | None
    more: dict[str, float | None] = {}
    exact_resume: Literal["verified", "approximate", "mismatch"] | None
    devices: list[str] = []
    ranks: list[RankView] = []
