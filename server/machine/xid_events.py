"""Xid errors from NVML events, for systems where only root can read the kernel log.

Debian and Ubuntu set dmesg_restrict, which hides the Xid lines of the kernel log from ordinary
users. NVML events need no privilege; they do not name the process.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from contextlib import suppress
from typing import Any

from server.machine.devices import pci_address, query, text_of

KEPT = 64
WAIT_MILLISECONDS = 1000  # upper bound of the delay of `stop`
STOP_SECONDS = 3.0


class XidListener:
    """Thread that collects Xid events of all GPUs, from `start` to `stop`."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, str]] = deque(maxlen=KEPT)
        self._ends = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread. No-op without a GPU or without driver support for Xid events."""
        self._thread = threading.Thread(target=self._run, name="xid events", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._ends.set()
        if self._thread is not None:
            self._thread.join(STOP_SECONDS)

    def lines(self, since_uptime_seconds: float = 0.0) -> list[str]:
        """Xid events since that time after boot, in the format of the kernel log."""
        return [line for at, line in list(self._seen) if at >= since_uptime_seconds]

    def _run(self) -> None:
        try:
            import pynvml

            pynvml.nvmlInit()
        except Exception:  # no driver, no library, no permission
            return
        try:
            with suppress(pynvml.NVMLError, AttributeError):
                self._listen(pynvml)
        finally:
            with suppress(pynvml.NVMLError):
                pynvml.nvmlShutdown()

    def _listen(self, nvml: Any) -> None:
        events = nvml.nvmlEventSetCreate()
        try:
            if not _register(nvml, events):
                return
            while not self._ends.is_set():
                try:
                    found = nvml.nvmlEventSetWait_v2(events, WAIT_MILLISECONDS)
                except nvml.NVMLError_Timeout:
                    continue
                if found.eventType == nvml.nvmlEventTypeXidCriticalError:
                    self._seen.append((_uptime(), _line(nvml, found)))
        finally:
            nvml.nvmlEventSetFree(events)


def _register(nvml: Any, events: Any) -> int:
    """Register for the Xid events of each GPU. Returns the number that support them."""
    wanted, registered = nvml.nvmlEventTypeXidCriticalError, 0
    for index in range(nvml.nvmlDeviceGetCount()):
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        if (query(nvml, lambda h=handle: nvml.nvmlDeviceGetSupportedEventTypes(h)) or 0) & wanted:
            nvml.nvmlDeviceRegisterEvents(handle, wanted, events)
            registered += 1
    return registered


def _line(nvml: Any, found: Any) -> str:
    bus = query(nvml, lambda: nvml.nvmlDeviceGetPciInfo(found.device).busId)
    where = pci_address(text_of(bus)) if bus else "unknown"
    return f"NVRM: Xid (PCI:{where}): {found.eventData}, reported by NVIDIA's library"


def _uptime() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else 0.0
