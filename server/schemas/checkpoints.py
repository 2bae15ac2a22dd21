"""Checkpoints of a run."""

from __future__ import annotations

from pydantic import BaseModel

from trainer.contract.spec import Strict


class CheckpointBrief(BaseModel):
    name: str
    """Directory name of the checkpoint: step and attempt."""
    step: int
    bytes: int
    created_at: float


class CheckpointView(BaseModel):
    id: str
    name: str
    """Directory name of the checkpoint: step and attempt."""
    step: int
    """Step of the checkpoint."""
    attempt: int | None
    bytes: int
    manifest_sha256: str
    """SHA-256 of the manifest, which lists the hash of each file."""
    why: str
    """Why it was saved: cadence, requested, pause, end, …"""
    pinned: bool
    newest: bool
    """Whether this is the newest usable checkpoint of the lineage."""
    best: bool
    superseded: bool
    bad: str | None
    """Why the checkpoint is unusable; null when it is usable."""
    val_bpb: float | None
    """Validation loss of the checkpoint, in bits per byte."""
    next_loss: float | None
    """Loss of the step after the checkpoint, in nats per token; a resume repeats it."""
    save_seconds: float
    """Time from the snapshot until the checkpoint was durable, in seconds."""
    stall_seconds: float
    """Time for which training was blocked, in seconds."""
    created_at: float
    files: list[str] = []
    """Names of the files in the checkpoint."""


class PatchCheckpoint(Strict):
    pinned: bool


class SaveRequest(Strict):
    pin: bool = False
    """Whether to pin the checkpoint."""
