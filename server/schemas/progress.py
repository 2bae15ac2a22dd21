"""Progress of a run now: step, loss, throughput, ETA, its devices and their ranks."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel

from server.schemas.checkpoints import CheckpointBrief
from server.schemas.runs import Condition
from server.schemas.states import Desired, State
from server.schemas.system import PeakFlops
from trainer.contract.ranks import RankRow
from trainer.contract.reasons import Reason


class EtaParts(BaseModel):
    training: float
    evaluation: float
    saving: float


class Vram(BaseModel):
    allocated: int | None = None
    """Memory in use by tensors, in bytes."""
    reserved: int | None = None
    """Memory reserved by the allocator, in bytes."""
    peak: int | None = None
    """Peak memory reserved by the allocator so far, in bytes."""
    total: int | None = None
    """Memory of the device, in bytes."""


class RankView(RankRow):
    """GET /v1/runs/{id}/ranks: the last report of one process (rank) of a run on several
    devices."""

    seen_at: float
    """Time of the report, in unix seconds."""


class Progress(BaseModel):
    """GET /v1/runs/{id}/progress. vram_bytes, power_watts: of all devices; ranks: of each."""

    id: str
    name: str
    state: State
    desired_state: Desired
    reason: Reason
    reason_message: str
    advice: str
    phase: str | None
    """Name of the phase."""
    attempt: int | None
    stage: str | None
    stage_since: float | None = None
    """When the stage began, in unix seconds."""
    stage_detail: str
    stage_fraction: float | None
    """Progress as a fraction of the stage, from 0 to 1."""
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
    """Model FLOPs utilisation, counting only the attention that is computed (causal)."""
    peak_flops: PeakFlops | None
    vram_bytes: Vram
    """Device memory, in bytes."""
    power_watts: float | None
    temperature_celsius: float | None
    energy_joules: float | None
    eta_seconds: float | None
    finish_at: float | None
    """Expected end under the hours of the run and its device, in unix seconds."""
    energy_left_joules: float | None = None
    """Energy still needed, at the mean power so far, in joules."""
    cost_left: float | None = None
    """Cost of that energy at the tariff or energy price, in their currency."""
    eta_parts: EtaParts | None
    """Time left by part, in seconds."""
    eta_source: str | None
    """Throughput that the ETA is based on."""
    training_seconds: float | None = None
    started_at: float | None = None
    ended_at: float | None = None
    condition: Condition | None = None
    last_step_at: float | None
    last_checkpoint: CheckpointBrief | None
    """Newest usable checkpoint of the lineage."""
    val_bpb: float | None
    core: float | None
    more: dict[str, float | None] = {}
    """Newest value of further metrics, by key; see GET /v1/catalog."""
    exact_resume: Literal["verified", "approximate", "mismatch"] | None
    devices: list[str] = []
    """Devices of the newest attempt, one per process."""
    ranks: list[RankView] = []
    """Ranks (processes) of a run on several devices, reported every 30 s."""

    def metric(self, key: str) -> float | None:
        """Newest value of a metric of the registry; None if it has none now."""
        if key == "vram_reserved_bytes":
            return self.vram_bytes.reserved
        return getattr(self, key) if key in Progress.model_fields else self.more.get(key)
