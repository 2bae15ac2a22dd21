"""Rendezvous watch: ends a rank whose peer dies before all ranks have joined.

Until then a rank waits inside torch.distributed. No connection exists that could break, and Python
signal handlers do not run: torchrun's SIGTERM, its answer to the death of another rank, would be
followed by SIGKILL 30 s later, and the cause would not be recorded. So each rank registers its
process in the attempt's directory before it loads torch, and a thread watches those of the others.
A process on another machine is not visible: its registration counts up while it lives.
"""

from __future__ import annotations

import itertools
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from trainer.contract import units
from trainer.contract.exits import rank_records
from trainer.contract.rundir import ProcessIdentity
from trainer.runtime import peers
from trainer.runtime.peers import ELSEWHERE, NEVER_SEEN, LostPeer, Member, Registration

POLL_SECONDS = 0.25
BEAT_LOOKS = 20  # between two beats: 5 s
SILENCE_SECONDS = 90.0  # without a beat seen: a network disk may show it a minute late
SILENCE = "TRAIND_RANKS_SILENCE_SECONDS"  # another one, for tests
CAUSE_SECONDS = 2.0  # after SIGTERM, in which the death that caused it becomes visible
_STOPS = frozenset({signal.SIGTERM, signal.SIGINT})
_PROC = Path("/proc")


class Terminated(Exception):
    """SIGTERM before training began: nothing was trained that could be saved."""


class Rendezvous:
    """Context manager around everything up to the join. is_told: returns True once Python's handler
    has seen SIGTERM. end: called in the thread with the cause, while the main thread is blocked;
    the process exits with the status it returns."""

    def __init__(
        self,
        attempt: Path,
        rank: int,
        devices: Sequence[str],
        is_told: Callable[[], bool],
        end: Callable[[Exception], int],
    ) -> None:
        self._attempt, self._rank, self._devices = attempt, rank, devices
        self._is_told, self._end = is_told, end
        self._lock, self._is_over = threading.Lock(), False
        self._told_at: float | None = None
        self._beats = Beats(float(os.environ.get(SILENCE, SILENCE_SECONDS)))

    def __enter__(self) -> None:
        self._signals, write = os.pipe()
        os.set_blocking(self._signals, False)
        os.set_blocking(write, False)
        # written by the C handler, at once: Python's runs when the main thread returns from C
        self._before = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        peers.register(self._attempt, self._rank)
        threading.Thread(target=self._watch, name="rendezvous", daemon=True).start()

    def __exit__(self, *_: object) -> None:
        with self._lock:  # never released by a thread that ends the process
            self._is_over = True
        os.close(signal.set_wakeup_fd(self._before))
        os.close(self._signals)

    def _watch(self) -> None:
        for look in itertools.count(1):
            with self._lock:
                if self._is_over:
                    return
                if look % BEAT_LOOKS == 0:
                    with suppress(OSError):
                        peers.register(self._attempt, self._rank, look // BEAT_LOOKS)
                if (cause := self._cause()) is not None:
                    self._leave(cause)
            time.sleep(POLL_SECONDS)

    def _leave(self, cause: Exception) -> None:
        status = 1
        try:
            status = self._end(cause)
        finally:
            os._exit(status)

    # --- what is seen ----------------------------------------------------------------------------

    def _cause(self) -> Exception | None:
        """Why the others can no longer join; None while they can."""
        with suppress(OSError):  # too many open files do not mean a dead rank
            found = peers.registered(self._attempt)
            others = {rank: one for rank, one in found.items() if rank != self._rank}
            gone = {rank for rank, one in others.items() if one.is_gone}
            records = rank_records(self._attempt)  # read after the processes: written before
            terminated = [rank for rank in sorted(records) if records[rank].outcome == "terminated"]
            if terminated:
                return Terminated(f"rank {terminated[0]} got SIGTERM before all ranks had joined")
            if gone or records.keys() - {self._rank}:
                return LostPeer("it ended before all ranks had joined", self._members(found))
            if silent := self._beats.silent(others):
                return LostPeer(self._silence(silent, others), self._members(found))
            return self._after_sigterm(found)
        return None

    def _silence(self, ranks: list[int], others: dict[int, Registration]) -> str:
        named = ", ".join(
            f"rank {rank} ({self._devices[rank]}, process {others[rank].identity.pid} on "
            f"{others[rank].host})"
            for rank in ranks
        )
        return (
            f"{named}: no heartbeat for {units.duration(self._beats.seconds)} before all had joined"
        )

    def _after_sigterm(self, found: dict[int, Registration]) -> Exception | None:
        if not self._was_told():
            return None
        missing = self._local_ranks() - found.keys()
        missing -= _living_siblings() if missing else set()
        if missing:
            words = "it ended before it could register"
            return LostPeer(words, self._members(found, missing))
        return Terminated("SIGTERM before all ranks had joined")

    def _was_told(self) -> bool:
        """True if SIGTERM arrived long enough ago that the death that caused it is visible."""
        is_told = self._is_told()
        with suppress(BlockingIOError):
            is_told |= bool(_STOPS & set(os.read(self._signals, 4096)))
        if is_told and self._told_at is None:
            self._told_at = time.monotonic()
        return self._told_at is not None and time.monotonic() - self._told_at >= CAUSE_SECONDS

    def _local_ranks(self) -> set[int]:
        """The ranks of this machine, which are consecutive; empty if the environment has none."""
        if "LOCAL_RANK" not in os.environ or os.getppid() == 1:
            return set()
        first = self._rank - int(os.environ["LOCAL_RANK"])
        return set(range(first, first + int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))

    def _members(
        self, found: dict[int, Registration], missing: frozenset[int] | set[int] = frozenset()
    ) -> list[Member]:
        members = []
        for rank, device in enumerate(self._devices):
            one = found.get(rank)
            if one is not None:
                members.append(Member(rank, one.host, device, one.identity.pid))
            else:
                pid = NEVER_SEEN if rank in missing else ELSEWHERE
                members.append(Member(rank, socket.gethostname(), device, pid))
        return members


class Beats:
    """Heartbeats: detects ranks of other machines that have stopped counting up.

    Measured in polls, not by the clock: while this process is stopped, it does not poll.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._last: dict[int, tuple[ProcessIdentity, int]] = {}
        self._looks: dict[int, int] = {}

    def silent(self, others: dict[int, Registration]) -> list[int]:
        """Count one poll; returns the ranks without a heartbeat for `seconds`."""
        for rank, one in others.items():
            now = (one.identity, one.beat)
            is_still = not one.is_here and self._last.get(rank) == now
            self._looks[rank] = self._looks.get(rank, 0) + 1 if is_still else 0
            self._last[rank] = now
        return [
            rank
            for rank, looks in sorted(self._looks.items())
            if looks and looks * POLL_SECONDS >= self.seconds
        ]


def _living_siblings() -> set[int]:
    """Live ranks with the same parent process as this one, registered or not."""
    return {
        rank
        for name in os.listdir(_PROC)
        if name.isdigit() and _parent(name) == os.getppid()
        for rank in _rank_in_environment(name)
    }


def _parent(pid: str) -> int | None:
    try:
        state, parent = (_PROC / pid / "stat").read_text().rpartition(")")[2].split()[:2]
    except (OSError, ValueError):
        return None
    return None if state in ("Z", "X") else int(parent)


def _rank_in_environment(pid: str) -> list[int]:
    """The rank of a process, from the environment that torchrun or srun set."""
    try:
        items = (_PROC / pid / "environ").read_bytes().split(b"\0")
    except OSError:
        return []
    found = dict(item.split(b"=", 1) for item in items if b"=" in item)
    rank = found.get(b"RANK", found.get(b"SLURM_PROCID", b""))
    return [int(rank)] if rank.isdigit() else []
