"""systemd notifications (sd_notify): ready, watchdog, stopping. No-op without a manager.

One datagram to the socket in NOTIFY_SOCKET. The watchdog is fed only while the supervisor is alive
and the event loop answers, so that a daemon that hangs is restarted; its trainers keep running.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from contextlib import suppress


def notify(words: str) -> bool:
    """Send a notification to the service manager. Returns False without one."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address[:1] not in ("/", "@"):
        return False
    if address[0] == "@":  # the abstract namespace
        address = "\0" + address[1:]
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.settimeout(1.0)
        manager.sendto(words.encode(), address)
        return True
    return False


def watchdog_seconds() -> float | None:
    """Interval of watchdog messages: half of the manager's timeout. None: no watchdog."""
    usec, pid = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", "")
    if not usec.isdigit() or int(usec) == 0 or (pid and pid != str(os.getpid())):
        return None
    return int(usec) / 2_000_000


async def feed_watchdog(is_alive: Callable[[], bool]) -> None:
    """Send watchdog messages while `is_alive()`. Returns immediately without a watchdog."""
    seconds = watchdog_seconds()
    while seconds is not None:
        if is_alive():
            notify("WATCHDOG=1")
        await asyncio.sleep(seconds)
