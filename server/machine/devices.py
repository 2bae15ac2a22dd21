"""Device discovery without torch: GPUs through NVML, and the CPU."""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from server.errors import TraindError
from trainer.contract.gpu_signs import sign_of_gpu

RETRY_SECONDS = 5.0
T = TypeVar("T")


class DeviceMissing(TraindError):
    code, status, title = "device-missing", 422, "The device is not on this machine"


@dataclass(frozen=True)
class Device:
    """A device a run can use. name: product name. memory_bytes: None for shared memory.

    capability: CUDA compute capability, (8, 9) for an RTX 40; None without CUDA. pci: address,
    such as 0000:01:00.
    """

    device: str
    name: str
    memory_bytes: int | None = None
    uuid: str | None = None
    capability: tuple[int, int] | None = None
    pci: str | None = None


@dataclass(frozen=True)
class _Found:
    """Discovered devices. unanswered: why an installed GPU is not among them. at: monotonic s."""

    devices: tuple[Device, ...] = ()
    unanswered: str | None = None
    at: float = 0.0


_found = _Found()


def discover() -> tuple[Device, ...]:
    """Devices a run may request, best first. About 20 ms with a GPU; cached.

    While the driver does not respond, as during boot, discovery repeats every RETRY_SECONDS.
    """
    global _found
    age = time.monotonic() - _found.at
    if _found.devices and (age < RETRY_SECONDS or not _found.unanswered):
        return _found.devices
    gpus, why = _nvidia_gpus()
    sign = sign_of_gpu()
    mps = (Device("mps", "Apple GPU"),) if _has_mps() else ()
    _found = _Found(
        (*gpus, *mps, Device("cpu", _cpu_name())),
        f"{sign} exists, but NVML reports: {why}" if sign and not gpus else None,
        time.monotonic(),
    )
    return _found.devices


def unusable_gpu() -> str | None:
    """Why an installed GPU cannot be used, or None."""
    discover()
    return _found.unanswered


def clear_cache() -> None:
    """Clear the cache: the next call discovers the devices again."""
    global _found
    _found = _Found()


class PresentDevices(Sequence[Device]):
    """The devices present at each access."""

    def __getitem__(self, index: Any) -> Any:
        return discover()[index]

    def __len__(self) -> int:
        return len(discover())


def resolve(wanted: str, devices: Sequence[Device] | None = None) -> str:
    """Resolve the `device` of a spec to a device of this machine. Raises DeviceMissing."""
    devices = discover() if devices is None else devices
    present = [device.device for device in devices]
    if wanted == "auto":
        return present[0]
    name = "cuda:0" if wanted == "cuda" else wanted
    if name not in present:
        raise DeviceMissing(
            f"device {wanted!r} is not on this machine; available: {', '.join(present)}",
            hint="Set device to 'auto', or run traind doctor to check the driver.",
        )
    return name


def resolve_all(wanted: str, devices: Sequence[Device] | None = None) -> tuple[str, ...]:
    """All devices that satisfy a spec: for 'auto' the best one and all of the same model.

    Raises DeviceMissing.
    """
    present = discover() if devices is None else devices
    name = resolve(wanted, present)
    best = next(one for one in present if one.device == name)
    alike = [
        d.device for d in present if (d.name, d.memory_bytes) == (best.name, best.memory_bytes)
    ]
    return tuple(alike) if wanted == "auto" else (name,)


def all_gpus(found: Sequence[Device]) -> list[str]:
    """GPUs with the name and memory of the first one."""
    cards = [one for one in found if one.device.startswith("cuda")]
    alike = [c for c in cards if (c.name, c.memory_bytes) == (cards[0].name, cards[0].memory_bytes)]
    return [card.device for card in alike]


def handles(nvml: Any) -> list[Any]:
    """NVML handles of all GPUs; for a partitioned GPU (MIG), those of its MIG devices."""
    found: list[Any] = []
    for index in range(nvml.nvmlDeviceGetCount()):
        whole = nvml.nvmlDeviceGetHandleByIndex(index)
        found += _parts(nvml, whole) or [whole]
    return found


def query(nvml: Any, question: Callable[[], T]) -> T | None:
    """Query NVML; None if the card or driver does not support the query."""
    try:
        return question()
    except (nvml.NVMLError, AttributeError):
        return None


def _nvidia_gpus() -> tuple[tuple[Device, ...], str]:
    """GPUs that are visible to CUDA in the trainer, and the reason if there are none."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception as error:  # no driver, no library, no permission
        return (), str(error)
    try:
        shown = _visible(pynvml, handles(pynvml))
        return tuple(_describe(pynvml, i, h) for i, h in enumerate(shown)), "no GPU is visible"
    except pynvml.NVMLError as error:
        return (), str(error)
    finally:
        with suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()


def _describe(nvml: Any, index: int, handle: Any) -> Device:
    """Query each value separately: unified memory reports no size, a MIG device no name."""
    memory = query(nvml, lambda: nvml.nvmlDeviceGetMemoryInfo(handle))
    capability = query(nvml, lambda: nvml.nvmlDeviceGetCudaComputeCapability(handle))
    bus = query(nvml, lambda: nvml.nvmlDeviceGetPciInfo(handle).busId)
    uuid = _uuid(nvml, handle)
    return Device(
        f"cuda:{index}",
        text_of(query(nvml, lambda: nvml.nvmlDeviceGetName(handle)) or "NVIDIA GPU"),
        int(memory.total) if memory is not None else None,
        uuid,
        (int(capability[0]), int(capability[1])) if capability is not None else None,
        pci_address(text_of(bus)) if bus else None,
    )


def pci_address(text: str) -> str:
    """Normalise a PCI address to the kernel's form: 00000000:01:00.0 becomes 0000:01:00."""
    domain, bus, device = text.lower().partition(".")[0].split(":")
    return f"{domain[-4:]:0>4}:{bus}:{device}"


def _uuid(nvml: Any, handle: Any) -> str | None:
    found = query(nvml, lambda: nvml.nvmlDeviceGetUUID(handle))
    return text_of(found) if found else None


def _parts(nvml: Any, handle: Any) -> list[Any]:
    """The MIG devices of a partitioned GPU."""
    mode = query(nvml, lambda: nvml.nvmlDeviceGetMigMode(handle))
    if not mode or not mode[0]:
        return []
    count = query(nvml, lambda: nvml.nvmlDeviceGetMaxMigDeviceCount(handle)) or 0
    parts = [query(nvml, lambda i=i: nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, i))
             for i in range(count)]  # fmt: skip
    return [part for part in parts if part is not None]


def _visible(nvml: Any, found: list[Any]) -> list[Any]:
    """Apply CUDA_VISIBLE_DEVICES, which NVML ignores: entries are indices or UUID prefixes; the
    first invalid entry ends the list, as in CUDA."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None:
        return found
    shown: list[Any] = []
    for part in (part.strip() for part in chosen.split(",")):
        if part.isdigit():
            matching = found[int(part) : int(part) + 1]
        else:
            matching = [h for h in found if part and (_uuid(nvml, h) or "").startswith(part)]
        if len(matching) != 1:
            break
        shown += matching
    return shown


def text_of(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _has_mps() -> bool:
    return sys.platform == "darwin" and platform.machine() == "arm64"


def _cpu_name() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
