"""Early signals: SIGTERM and SIGINT that arrive while a process still imports its modules.

An entry point installs them first; `Control.install_signals` replaces them. By default SIGTERM
would end the process without a record, which looks like a crash.
"""

from __future__ import annotations

import signal
from types import FrameType

_received: list[int] = []


def install() -> None:
    """Install handlers for SIGTERM and SIGINT that only record the signal."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _on_signal)


def has_received() -> bool:
    """True if SIGTERM or SIGINT has arrived since `install`."""
    return bool(_received)


def _on_signal(signum: int, frame: FrameType | None) -> None:
    _received.append(signum)
