"""The queue: who holds each device, and who waits."""

from __future__ import annotations

from pydantic import BaseModel

from trainer.contract.reasons import Reason


class QueuePlace(BaseModel):
    """A device, who holds it, and when it is open."""

    device: str
    name: str
    """Product name of the device."""
    run: str | None
    """Name of the run that holds the device."""
    job: str | None
    """Job that holds the device."""
    is_open: bool
    """Whether the device's hours are open now."""
    closes_at: float | None
    """Time at which the hours end, in unix seconds; null without an end."""
    opens_at: float | None
    """Time at which the next hours begin, in unix seconds."""
    neighbour: str | None
    """Other program that uses the device."""
    too_hot: str | None = None
    """Temperature that keeps runs off the device, as text; null while it is cool."""
    power_limit_watts: float | None = None
    """Power limit now, in watts; null where it is not reported."""
    problems: list[str] = []


class QueueEntry(BaseModel):
    """A run that waits for a device."""

    position: int
    """Place among the runs that wait, from 1."""
    run: str
    """Id of the run."""
    name: str
    priority: int
    devices: list[str]
    """Devices that would do, the preferred one first."""
    reason: Reason
    reason_message: str
    until: float | None
    """Time at which its hours begin or another run makes way, in unix seconds, if known."""


class QueueView(BaseModel):
    """Who runs where, who waits, for what and until when."""

    places: list[QueuePlace]
    """Devices, and who holds them."""
    waiting: list[QueueEntry]
    """Runs that wait, in the order in which they get a device; the first 100."""
    num_waiting: int
    """Number of runs that wait."""
    next_change_at: float | None
    """Time at which the clock alone changes the queue, in unix seconds."""
