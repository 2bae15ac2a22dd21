"""Checkpoints of a run."""

from __future__ import annotations

from pydantic import BaseModel

from trainer.contract.spec import Strict


class CheckpointBrief(BaseModel):
    name: str
    step: int
    bytes: int
    created_at: float


class CheckpointView(BaseModel):
    id: str
    name: str
    step: int
    attempt: int | None
    bytes: int
    manifest_sha256: str
    why: str
    pinned: bool
    newest: bool
    best: bool
    superseded: bool
    bad: str | None
    val_bpb: float | None
    next_loss: float | None
    save_seconds: float
    stall_seconds: float
    created_at: float
    files: list[str] = []


class PatchCheckpoint(Strict):
    pinned: bool


class SaveRequest(Strict):
    pin: bool = False
