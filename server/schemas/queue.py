"""The queue: who holds each device, and who waits."""

from __future__ import annotations

from pydantic import BaseModel

from trainer.contract.reasons import Reason


class QueuePlace(BaseModel):
    """A device, who holds it, and when it is open."""

    device: str
    name: str
    run: str | None
    job: str | None
    is_open: bool
    closes_at: float | None
    opens_at: float | None
    neighbour: str | None
    too_hot: str | None = None
    power_limit_watts: float | None = None
    problems: list[str] = []


class QueueEntry(BaseModel):
    """A run that waits for a device."""

    position: int
    run: str
    name: str
    priority: int
    devices: list[str]
    reason: Reason
    reason_message: str
    until: float | None


class QueueView(BaseModel):
    """Who runs where, who waits, for what and until when."""

    places: list[QueuePlace]
    waiting: list[QueueEntry]
    num_waiting: int
    next_change_at: float | None
