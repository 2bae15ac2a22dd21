"""Power limits of GPUs through NVML: read, set, or report the command that sets them as root."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from server.machine import devices

SAME_WATTS = 0.5  # limits that differ by less are equal


@dataclass(frozen=True)
class PowerState:
    """Power limit and its range, in watts; temperature in degrees Celsius. None: not reported."""

    limit_watts: float | None = None
    least_watts: float | None = None
    most_watts: float | None = None
    temperature_celsius: float | None = None


class PowerDenied(Exception):
    """The power limit cannot be set: no permission, or outside the range of the card."""

    @property
    def detail(self) -> str:
        return str(self)


def read(uuid: str) -> PowerState:
    """Power state of a GPU; empty without NVML or without that GPU."""
    with _gpu(uuid) as (nvml, handle):
        if handle is None:
            return PowerState()
        limit = devices.query(nvml, lambda: nvml.nvmlDeviceGetPowerManagementLimit(handle))
        span = devices.query(
            nvml, lambda: nvml.nvmlDeviceGetPowerManagementLimitConstraints(handle)
        )
        return PowerState(
            limit_watts=limit / 1000 if limit is not None else None,
            least_watts=span[0] / 1000 if span else None,
            most_watts=span[1] / 1000 if span else None,
            temperature_celsius=devices.query(
                nvml, lambda: float(nvml.nvmlDeviceGetTemperature(handle, 0))
            ),
        )


def set_limit(device: str, uuid: str, watts: float) -> None:
    """Set the power limit. Raises PowerDenied with the command to run as root, or the range."""
    with _gpu(uuid) as (nvml, handle):
        if handle is None:
            raise PowerDenied(
                f"{device} is not available through NVML, so its power limit cannot be set."
            )
        try:
            nvml.nvmlDeviceSetPowerManagementLimit(handle, round(watts * 1000))
        except nvml.NVMLError as error:
            raise _denied(nvml, error, device, uuid, watts) from error


def why_not(device: str, uuid: str, watts: float) -> str | None:
    """Why the power limit cannot be set, or None. Tests by setting the current limit again."""
    state = read(uuid)
    if state.limit_watts is None:
        return f"{device} reports no power limit, so none can be set."
    if abs(state.limit_watts - watts) < SAME_WATTS:
        return None
    if outside := _outside(device, watts, state):
        return outside
    try:
        set_limit(device, uuid, state.limit_watts)
    except PowerDenied as error:
        return error.detail.replace(_line(uuid, state.limit_watts), _line(uuid, watts))
    return None


def _outside(device: str, watts: float, state: PowerState) -> str | None:
    low, high = state.least_watts, state.most_watts
    if low is None or high is None or low <= watts <= high:
        return None
    return f"{device} accepts a power limit of {low:g} to {high:g} W; {watts:g} W cannot be set."


def _denied(nvml: Any, error: Any, device: str, uuid: str, watts: float) -> PowerDenied:
    if getattr(error, "value", None) == nvml.NVML_ERROR_NO_PERMISSION:
        line = _line(uuid, watts)
        return PowerDenied(f"Only root may set the power limit of {device}; run: {line}")
    state = read(uuid)
    return PowerDenied(
        _outside(device, watts, state) or f"The power limit of {device} cannot be set: {error}"
    )


def _line(uuid: str, watts: float) -> str:
    return f"sudo nvidia-smi -i {uuid} -pl {watts:g}"


@contextmanager
def _gpu(uuid: str) -> Iterator[tuple[Any, Any]]:
    """(NVML, handle) of the GPU; the handle is None if the GPU is not available."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # no driver, no library, no permission
        yield None, None
        return
    try:
        yield pynvml, _handle(pynvml, uuid)
    finally:
        with suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()


def _handle(nvml: Any, uuid: str) -> Any:
    for handle in devices.query(nvml, lambda: devices.handles(nvml)) or ():
        found = devices.query(nvml, lambda handle=handle: nvml.nvmlDeviceGetUUID(handle))
        if found is not None and (found if isinstance(found, str) else found.decode()) == uuid:
            return handle
    return None
