"""The devices of this machine, known without torch: NVIDIA's management library, and the CPU."""

from __future__ import annotations

import os
import platform
import sys
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from server.errors import TraindError


class DeviceMissing(TraindError):
    code, status, title = "device-missing", 422, "The device is not on this machine"


@dataclass(frozen=True)
class Device:
    """name is the maker's; memory in bytes, None where it is not the device's own.

    capability: CUDA's, (8, 9) for an RTX 40; None for what is no CUDA device.
    """

    device: str
    name: str
    memory_bytes: int | None = None
    uuid: str | None = None
    capability: tuple[int, int] | None = None


@cache
def discover() -> tuple[Device, ...]:
    """What a run may ask for, the best first. Looked up once: about 20 ms with a GPU."""
    gpus = _nvidia_gpus()
    mps = (Device("mps", "Apple GPU"),) if _has_mps() else ()
    return (*gpus, *mps, Device("cpu", _cpu_name()))


def resolve(wanted: str, devices: tuple[Device, ...] | None = None) -> str:
    """The device that a spec's `device` means here. Raises DeviceMissing."""
    devices = discover() if devices is None else devices
    present = [device.device for device in devices]
    if wanted == "auto":
        return present[0]
    name = "cuda:0" if wanted == "cuda" else wanted
    if name not in present:
        raise DeviceMissing(
            f"device {wanted!r} is not on this machine; there is {', '.join(present)}",
            hint="Leave device at 'auto', or see what traind doctor says about the driver.",
        )
    return name


def _nvidia_gpus() -> tuple[Device, ...]:
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # no driver, no library, no permission: then there is no GPU to use
        return ()
    gpus: list[Device] = []
    with suppress(pynvml.NVMLError):
        for index, place in enumerate(_visible(pynvml.nvmlDeviceGetCount())):
            handle = pynvml.nvmlDeviceGetHandleByIndex(place)
            gpus.append(
                Device(
                    f"cuda:{index}",
                    _text(pynvml.nvmlDeviceGetName(handle)),
                    int(pynvml.nvmlDeviceGetMemoryInfo(handle).total),
                    _text(pynvml.nvmlDeviceGetUUID(handle)),
                    _capability(pynvml, handle),
                )
            )
    with suppress(pynvml.NVMLError):
        pynvml.nvmlShutdown()
    return tuple(gpus)


def _capability(nvml: Any, handle: Any) -> tuple[int, int] | None:
    """None where the driver does not tell: then the trainer finds out."""
    with suppress(nvml.NVMLError, AttributeError):
        major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
        return int(major), int(minor)
    return None


def _visible(count: int) -> list[int]:
    """Which of the GPUs CUDA will show to the trainer; the library itself shows them all."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None:
        return list(range(count))
    numbers = [part.strip() for part in chosen.split(",")]
    return [int(part) for part in numbers if part.isdigit() and int(part) < count]


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _has_mps() -> bool:
    return sys.platform == "darwin" and platform.machine() == "arm64"


def _cpu_name() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
