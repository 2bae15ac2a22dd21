"""Other programs on a GPU: compute and graphics processes from NVML, except traind's."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, NamedTuple

import psutil

from server.machine import devices


class GpuProgram(NamedTuple):
    """A process that uses a GPU. memory_bytes: None if NVML does not report it."""

    pid: int
    name: str
    memory_bytes: int | None


def programs(is_ours: Callable[[psutil.Process], bool]) -> dict[str, list[GpuProgram]] | None:
    """Other programs by GPU UUID; None if NVML cannot list processes (WSL)."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # no driver, no library, no permission
        return None
    found: dict[str, list[GpuProgram]] = {}
    try:
        for handle in devices.handles(pynvml):
            running = _running(pynvml, handle)
            if running is None:
                return None
            uuid = pynvml.nvmlDeviceGetUUID(handle)
            found[uuid if isinstance(uuid, str) else uuid.decode()] = list(
                _others(running, is_ours)
            )
    except pynvml.NVMLError:
        return None
    finally:
        with suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()
    return found


def _running(nvml: Any, handle: Any) -> dict[int, int | None] | None:
    """Memory in bytes by pid of compute and graphics processes; None if neither is supported."""
    questions = (
        nvml.nvmlDeviceGetComputeRunningProcesses,
        nvml.nvmlDeviceGetGraphicsRunningProcesses,
    )
    answers = [devices.query(nvml, lambda ask=ask: ask(handle)) for ask in questions]
    if all(answer is None for answer in answers):
        return None
    held: dict[int, int | None] = {}
    for process in (one for answer in answers for one in answer or ()):
        before, size = held.get(process.pid), process.usedGpuMemory
        held[process.pid] = size if before is None else max(before, size or 0)
    return held


def _others(
    running: dict[int, int | None], is_ours: Callable[[psutil.Process], bool]
) -> Iterable[GpuProgram]:
    for pid, size in running.items():
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            if not is_ours(process):
                yield GpuProgram(pid, process.name(), size)
