"""The daemon, its machine and devices."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel


class PeakFlops(BaseModel):
    value: float
    source: str


class DeviceView(BaseModel):
    device: str
    name: str
    memory_bytes: int | None
    memory_used_bytes: int | None
    memory_by_owner: dict[str, int] = {}
    utilisation: float | None = None
    power_watts: float | None = None
    temperature_celsius: float | None = None
    peak_flops: PeakFlops | None
    run: str | None = None


class SystemView(BaseModel):
    """GET /v1/system."""

    version: str
    python: str
    versions: dict[str, str | None]
    sqlite: dict[str, str]
    devices: list[DeviceView]
    data_dir: str
    disk_total_bytes: int
    disk_free_bytes: int
    database_bytes: int
    backups: list[str]
    warnings: list[str]
    uptime_seconds: float
    auth: Literal["none", "token"]
