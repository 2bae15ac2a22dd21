"""The queue: which run uses each device, and which runs wait."""

from __future__ import annotations

from pydantic import BaseModel

from trainer.contract.reasons import Reason


class QueuePlace(BaseModel):
    """A device, the run that uses it, and its hours."""

    device: str
    name: str
    """Product name of the device."""
    run: str | None
    """Name of the run that uses the device."""
    job: str | None
    """Job that uses the device."""
    is_open: bool
    """Whether the device's hours are open now."""
    closes_at: float | None
    """Time at which the hours end, in unix seconds; null if they do not end."""
    opens_at: float | None
    """Time at which the next hours begin, in unix seconds."""
    neighbour: str | None
    """Other program that uses the device."""
    too_hot: str | None = None
    """Temperature that keeps runs off the device, as text; null below the ceiling."""
    power_limit_watts: float | None = None
    """Power limit now, in watts; null where it is not reported."""
    problems: list[str] = []


class QueueEntry(BaseModel):
    """A run that waits for a device."""

    position: int
    """Position in the queue, from 1."""
    run: str
    """Id of the run."""
    name: str
    priority: int
    devices: list[str]
    """Devices the run can use, the preferred one first."""
    reason: Reason
    reason_message: str
    until: float | None
    """Time at which its hours begin or another run frees the device, in unix seconds, if known."""


class QueueView(BaseModel):
    """The queue: the run on each device, and the waiting runs with the reason and end of each
    wait."""

    places: list[QueuePlace]
    """Devices and what uses them."""
    waiting: list[QueueEntry]
    """Waiting runs, in the order in which they get a device; the first 100."""
    num_waiting: int
    """Number of waiting runs."""
    next_change_at: float | None
    """Next time at which hours open or close, in unix seconds."""
