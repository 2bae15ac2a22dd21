"""The daemon, its machine and devices."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel


class PeakFlops(BaseModel):
    value: float
    """Peak, in FLOP/s."""
    source: str
    """Source of the peak: a table or a measurement."""


class DeviceView(BaseModel):
    device: str
    name: str
    """Product name of the device."""
    memory_bytes: int | None
    """Device memory, in bytes."""
    memory_used_bytes: int | None
    """Device memory in use, in bytes."""
    memory_by_owner: dict[str, int] = {}
    """Device memory in use by owner, in bytes."""
    utilisation: float | None = None
    """Fraction of time the device was busy, from 0 to 1."""
    power_watts: float | None = None
    temperature_celsius: float | None = None
    peak_flops: PeakFlops | None
    run: str | None = None
    """Name of the run that uses the device."""


class SystemView(BaseModel):
    """GET /v1/system."""

    version: str
    """Version of traind."""
    python: str
    """Version of Python."""
    versions: dict[str, str | None]
    sqlite: dict[str, str]
    """SQLite library and journal mode."""
    devices: list[DeviceView]
    """Devices of this machine."""
    data_dir: str
    """Data directory."""
    disk_total_bytes: int
    """Size of the data directory's disk, in bytes."""
    disk_free_bytes: int
    """Free disk space, in bytes."""
    disk_is_full: bool = False
    """Whether the disk has no room for what a request would write; runs wait until it has."""
    database_bytes: int
    """Size of the database, in bytes."""
    backups: list[str]
    """Verified backups of the database."""
    warnings: list[str]
    uptime_seconds: float
    """Uptime of the daemon, in seconds."""
    auth: Literal["none", "token"]
    """Whether requests need a token."""
