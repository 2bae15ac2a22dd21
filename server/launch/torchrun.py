"""Attempts on several devices of this machine: torchrun starts one process, a rank, on each.

torchrun's agent leads a session and so does every rank. Rank 0 is the trainer: it reports its own
pid, which takes the agent's place in the row, and is what is watched and signalled; SIGTERM to the
agent would be followed by SIGKILL half a minute later, checkpoint or not.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict
from types import MappingProxyType

from server.launch import process
from server.launch.launcher import Handle, Spot, Work
from server.launch.local import Local, helpers
from trainer.contract.rundir import DUMP_SIGNAL

NAME = "torchrun"


def is_supported() -> bool:
    """Whether ranks can be identified here, by their environment in /proc."""
    return sys.platform == "linux"


class Torchrun(Local):
    """Launcher like `Local` whose processes are started by torchrun."""

    name = NAME
    # what -P is to the agent, and the threads that it would warn about: the trainer sets its own
    variables = MappingProxyType({"PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1"})

    def command(self, work: Work) -> Sequence[str]:
        return (
            *("-P", "-m", "torch.distributed.run", "--standalone", "--max-restarts", "0"),
            *("--nproc-per-node", str(work.ranks), "-m", work.module),
        )

    def find(self, spot: Spot) -> Handle | None:
        """Rank 0, or the agent while there is none."""
        agent = None
        for one in helpers(spot):
            rank = process.variable(one.pid, "RANK")
            if rank == "0":
                return asdict(one)
            if rank is None and process.leads_session(one.pid):
                agent = one
        return asdict(agent) if agent is not None else None

    def signal(self, spot: Spot, handle: Handle, *signals: signal.Signals) -> bool:
        """To rank 0; stacks are asked of every rank, since any of them may be what hangs, and one
        that a signal stopped goes on: the others wait for it."""
        sent = super().signal(spot, handle, *signals)
        if sent and DUMP_SIGNAL in signals:
            for one in helpers(spot):
                if asdict(one) != dict(handle):
                    more = (signal.SIGCONT,) if process.is_stopped(one.pid) else ()
                    process.send(one, spot.token, DUMP_SIGNAL, *more)
        return sent


def stopped_ranks(spot: Spot) -> list[int]:
    """The ranks of an execution that a signal or a debugger stopped."""
    stopped = [one.pid for one in helpers(spot) if process.is_stopped(one.pid)]
    return sorted(int(rank) for pid in stopped if (rank := process.variable(pid, "RANK")))
