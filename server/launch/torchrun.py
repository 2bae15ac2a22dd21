"""Attempts on several devices of this machine: torchrun starts one process, a rank, on each.

torchrun's agent leads a session and so does every rank. Rank 0 is the trainer: it reports its own
pid, which takes the agent's place in the row, and is what is watched and signalled; SIGTERM to the
agent would be followed by SIGKILL half a minute later, checkpoint or not.
"""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict
from types import MappingProxyType

from server.launch import process
from server.launch.launcher import Handle, LaunchRequest, Workspace
from server.launch.local import Local, helpers
from trainer.contract.rundir import DUMP_SIGNAL, LOG

NAME = "torchrun"
LOG_LINES = 120  # its report of an end is about 45 lines long
_OF_THE_AGENT = re.compile(r"^[A-Z]\d{4} [\d:.]+ \d+ .*torch/distributed/")
# "failed (exitcode: -9) local_rank: 0 (pid: 41) of …", "SignalException: Process 40 got signal: 15"
_RANK_FAILED = re.compile(r"failed \(exitcode: (-?\d+)\) local_rank:")
_AGENT_SIGNALLED = re.compile(r"Process \d+ got signal: (\d+)")


def is_supported() -> bool:
    """True if ranks can be identified here, by their environment in /proc."""
    return sys.platform == "linux"


class Torchrun(Local):
    """Launcher like `Local` whose processes are started by torchrun."""

    name = NAME
    # what -P is to the agent, and the threads that it would warn about: the trainer sets its own
    variables = MappingProxyType({"PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1"})

    def command(self, work: LaunchRequest) -> Sequence[str]:
        return (
            *("-P", "-m", "torch.distributed.run", "--standalone", "--max-restarts", "0"),
            *("--nproc-per-node", str(work.ranks), "-m", work.module),
        )

    def find(self, workspace: Workspace) -> Handle | None:
        """Rank 0, or the agent while there is none."""
        agent = None
        for one in helpers(workspace):
            rank = process.variable(one.pid, "RANK")
            if rank == "0":
                return asdict(one)
            if rank is None and process.leads_session(one.pid):
                agent = one
        return asdict(agent) if agent is not None else None

    def exit_code(self, workspace: Workspace) -> int | None:
        """That of the rank that failed first, where the agent names it."""
        code = super().exit_code(workspace)
        if code is None or code <= 0:
            return code
        return first_exit_code(process.log_tail(workspace.directory / LOG, LOG_LINES)) or code

    def signal(self, workspace: Workspace, handle: Handle, *signals: signal.Signals) -> bool:
        """To rank 0; stacks are asked of every rank, since any of them may be what hangs, and one
        that a signal stopped goes on: the others wait for it."""
        sent = super().signal(workspace, handle, *signals)
        if sent and DUMP_SIGNAL in signals:
            for one in helpers(workspace):
                if asdict(one) != dict(handle):
                    more = (signal.SIGCONT,) if process.is_stopped(one.pid) else ()
                    process.send(one, workspace.token, DUMP_SIGNAL, *more)
        return sent


def first_exit_code(log: str) -> int | None:
    """The exit code of the rank that failed first, or the signal that ended the agent (negative),
    as the agent's report at the end of its log says; None without one."""
    if (failed := _RANK_FAILED.search(log)) is not None:
        return int(failed[1])
    if (signalled := _AGENT_SIGNALLED.search(log)) is not None:
        return -int(signalled[1])
    return None


def without_report(log: str) -> str:
    """What the ranks wrote: the log up to the agent's report of its end."""
    lines = log.splitlines()
    end = next((i for i, line in enumerate(lines) if _OF_THE_AGENT.match(line)), len(lines))
    return "\n".join(lines[:end])


def stopped_ranks(workspace: Workspace) -> list[int]:
    """The ranks of an execution that a signal or a debugger stopped."""
    stopped = [one.pid for one in helpers(workspace) if process.is_stopped(one.pid)]
    return sorted(int(rank) for pid in stopped if (rank := process.variable(pid, "RANK")))
