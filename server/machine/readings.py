"""Live GPU readings: memory by process, utilisation, power, temperature.

Read from NVML at most once a second; without NVML there are no readings.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

import psutil

from server.machine import devices

FRESH_SECONDS = 1.0
T = TypeVar("T")


@dataclass(frozen=True)
class DeviceReading:
    """Reading of one GPU. holders: memory in bytes by pid. utilisation: busy fraction of time,
    0 to 1."""

    memory_used_bytes: int | None = None
    holders: dict[int, int] = field(default_factory=dict)
    utilisation: float | None = None
    power_watts: float | None = None
    power_limit_watts: float | None = None
    temperature_celsius: float | None = None


class Readings:
    """Latest reading of each GPU by UUID."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._taken = -FRESH_SECONDS
        self._kept: dict[str, DeviceReading] = {}

    def of(self, uuid: str | None) -> DeviceReading:
        if uuid is None:
            return DeviceReading()
        with self._lock:
            if time.monotonic() - self._taken >= FRESH_SECONDS:
                self._kept, self._taken = _read_all(), time.monotonic()
            return self._kept.get(uuid, DeviceReading())


def process_name(pid: int) -> str:
    """Display name of a process: name and pid."""
    try:
        return f"{psutil.Process(pid).name()} ({pid})"
    except psutil.Error:
        return f"pid {pid}"


def _read_all() -> dict[str, DeviceReading]:
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # no driver, no library, no permission
        return {}
    found: dict[str, DeviceReading] = {}
    try:
        with suppress(pynvml.NVMLError):
            for handle in devices.handles(pynvml):
                uuid = pynvml.nvmlDeviceGetUUID(handle)
                found[uuid if isinstance(uuid, str) else uuid.decode()] = _read(pynvml, handle)
    finally:
        with suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()
    return found


def _read(nvml: Any, handle: Any) -> DeviceReading:
    """Query each value separately: cards differ in what they support."""

    def ask(question: Callable[[], T]) -> T | None:
        return devices.query(nvml, question)

    memory = ask(lambda: nvml.nvmlDeviceGetMemoryInfo(handle))
    load = ask(lambda: nvml.nvmlDeviceGetUtilizationRates(handle))
    milliwatts = ask(lambda: nvml.nvmlDeviceGetPowerUsage(handle))
    limit = ask(lambda: nvml.nvmlDeviceGetPowerManagementLimit(handle))
    processes = ask(lambda: nvml.nvmlDeviceGetComputeRunningProcesses(handle)) or []
    return DeviceReading(
        memory_used_bytes=int(memory.used) if memory else None,
        holders={p.pid: int(p.usedGpuMemory or 0) for p in processes},
        utilisation=load.gpu / 100 if load else None,
        power_watts=milliwatts / 1000 if milliwatts is not None else None,
        power_limit_watts=limit / 1000 if limit is not None else None,
        temperature_celsius=ask(
            lambda: float(nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU))
        ),
    )
