"""Peer watch: ends a rank whose peer has died if the exchange does not notice it.

gloo misses about one lost connection in two hundred: the other rank then waits for the timeout, ten
minutes for tensors, a month for words. A thread watches the processes of this machine instead.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable

from trainer.contract.rundir import ProcessIdentity, identify
from trainer.runtime.peers import LostPeer
from trainer.runtime.world import World

POLL_SECONDS = 0.5
NOTICES_SECONDS = 2.0  # usually the exchange notices within this time, with its own error


def start(world: World, end: Callable[[LostPeer], object]) -> None:
    """Watch the other ranks of this machine from a thread. end: called there to finish the process
    while the main thread is blocked; the process exits afterwards."""
    if world.size > 1:
        threading.Thread(target=_watch, args=(world, end), name="peer-watch", daemon=True).start()


def _watch(world: World, end: Callable[[LostPeer], object]) -> None:
    peers = _peers(world)
    while all(one is not None and identify(one.pid) == one for one in peers):
        time.sleep(POLL_SECONDS)
    gone_at = time.monotonic()
    while not _waits_since(world, gone_at):
        time.sleep(POLL_SECONDS)
    try:
        end(LostPeer("its process is gone, and its connection was not closed", world.members))
    finally:
        os._exit(1)


def _peers(world: World) -> list[ProcessIdentity | None]:
    """Processes of the other ranks; None for one that joined and has already exited."""
    here = socket.gethostname()
    return [identify(m.pid) for m in world.members if m.rank != world.rank and m.host == here]


def _waits_since(world: World, gone_at: float) -> bool:
    """True if the main thread has waited for others for the whole time since `gone_at`."""
    since = world.waiting_since
    return since is not None and time.monotonic() - max(since, gone_at) > NOTICES_SECONDS
