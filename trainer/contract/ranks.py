"""Row of a rank, one process of a run on several devices, as in the journal and in API answers."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class RankRow(BaseModel):
    """One rank of an attempt. Times are means over the steps since the last row, except
    compute_seconds, which is a median."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    rank: int
    """Number of the process, from 0; rank 0 is the trainer."""
    host: str
    """Machine of the process."""
    device: str
    """Device of the process."""
    pid: int
    """Process id on that machine."""
    compute_seconds: float | None = None
    """Time of its own forward and backward passes in a step, in seconds."""
    waited_seconds: float | None = None
    """Time it waited for other ranks in a step, in seconds."""
    vram_allocated_bytes: int | None = None
    """Device memory in use by tensors of the process, in bytes."""
    vram_reserved_bytes: int | None = None
    """Device memory held by the process, in bytes."""
    vram_peak_bytes: int | None = None
    """Peak device memory of the process, in bytes."""
    vram_total_bytes: int | None = None
    """Memory of the device, in bytes."""
    power_watts: float | None = None
    temperature_celsius: float | None = None
