"""Wakes the supervisor on commits and process exits."""

from __future__ import annotations

import os
import select
from collections.abc import Iterable
from contextlib import suppress

from trainer.contract.rundir import ProcessIdentity


class Wakeup:
    """`wait` returns after a wake-up call, the end of a watched process, or a timeout."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        os.set_blocking(self._write, False)
        self._ends: dict[ProcessIdentity, int] = {}

    def ring(self) -> None:
        """Wake the waiter, from any thread; repeated calls have no further effect."""
        with suppress(BlockingIOError, OSError):
            os.write(self._write, b"!")

    def watch(self, living: Iterable[ProcessIdentity]) -> None:
        """Watch for the end of these processes only."""
        wanted = set(living)
        for identity in set(self._ends) - wanted:
            os.close(self._ends.pop(identity))
        for identity in wanted - set(self._ends):
            if hasattr(os, "pidfd_open"):
                with suppress(OSError):
                    self._ends[identity] = os.pidfd_open(identity.pid)

    def wait(self, seconds: float) -> None:
        poll = select.poll()
        for fd in (self._read, *self._ends.values()):
            poll.register(fd, select.POLLIN)
        poll.poll(seconds * 1000)
        with suppress(BlockingIOError):
            while os.read(self._read, 4096):
                pass

    def close(self) -> None:
        self.watch(())
        for fd in (self._read, self._write):
            os.close(fd)
