"""The lock of a data directory: one daemon serves it at a time."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from trainer.contract.rundir import Held, acquire

if TYPE_CHECKING:
    from server.settings import Settings

LOCK = "daemon.lock"

_held: dict[str, int] = {}  # data directory -> how often this process holds its lock


class CannotServe(Exception):
    """The daemon does not start; the sentence says why and what to do."""


@contextmanager
def held(settings: Settings) -> Iterator[None]:
    """Hold the data directory for this process. Raises CannotServe naming who holds it."""
    root = settings.paths.root
    if _held.get(str(root)):
        yield  # `serve` took it before it began to listen
        return
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = acquire(root / LOCK, f"pid {os.getpid()}, since {time.strftime('%F %T')}")
    except Held as error:
        raise CannotServe(
            f"Another traind serves {root} ({error.holder}). Use that one, stop it, or choose "
            "another directory with --data-dir."
        ) from None
    except OSError as error:
        raise CannotServe(
            f"The data directory {root} cannot be used: {error.strerror}. Choose another one with "
            "--data-dir or TRAIND_DATA_DIR."
        ) from error
    _held[str(root)] = 1
    try:
        yield
    finally:
        del _held[str(root)]
        os.close(fd)
