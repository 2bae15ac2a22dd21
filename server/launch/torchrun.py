"""torchrun launcher: attempts on several devices of this machine, one process (rank) on each.

torchrun's agent leads a session and so does every rank. Rank 0 is the trainer: the pid it reports
replaces the agent's in the row, and is the one watched and signalled. The agent is never sent
SIGTERM: it would follow with SIGKILL 30 s later, with or without a checkpoint.
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
LOG_LINES = 120  # the agent's failure report has about 45 lines
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
    # -P for the ranks; a thread count, without which torchrun warns: the trainer sets its own
    variables = MappingProxyType({"PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1"})

    def command(self, work: LaunchRequest) -> Sequence[str]:
        return (
            *("-P", "-m", "torch.distributed.run", "--standalone", "--max-restarts", "0"),
            *("--nproc-per-node", str(work.ranks), "-m", work.module),
        )

    def find(self, workspace: Workspace) -> Handle | None:
        """Handle of rank 0, or of the agent until rank 0 has started."""
        agent = None
        for one in helpers(workspace):
            rank = process.variable(one.pid, "RANK")
            if rank == "0":
                return asdict(one)
            if rank is None and process.leads_session(one.pid):
                agent = one
        return asdict(agent) if agent is not None else None

    def exit_code(self, workspace: Workspace) -> int | None:
        """Exit code of the rank that failed first, if the agent's report names it."""
        code = super().exit_code(workspace)
        if code is None or code <= 0:
            return code
        return first_exit_code(process.log_tail(workspace.directory / LOG, LOG_LINES)) or code

    def signal(self, workspace: Workspace, handle: Handle, *signals: signal.Signals) -> bool:
        """Signal rank 0. DUMP_SIGNAL goes to every rank, since any may hang; a stopped rank is also
        continued, since the others wait for it."""
        sent = super().signal(workspace, handle, *signals)
        if sent and DUMP_SIGNAL in signals:
            for one in helpers(workspace):
                if asdict(one) != dict(handle):
                    more = (signal.SIGCONT,) if process.is_stopped(one.pid) else ()
                    process.send(one, workspace.token, DUMP_SIGNAL, *more)
        return sent


def first_exit_code(log: str) -> int | None:
    """Exit code of the rank that failed first, or the signal that ended the agent (negative), from
    the agent's report at the end of the log; None without a report."""
    if (failed := _RANK_FAILED.search(log)) is not None:
        return int(failed[1])
    if (signalled := _AGENT_SIGNALLED.search(log)) is not None:
        return -int(signalled[1])
    return None


def without_report(log: str) -> str:
    """Log without the agent's failure report at its end."""
    lines = log.splitlines()
    end = next((i for i, line in enumerate(lines) if _OF_THE_AGENT.match(line)), len(lines))
    return "\n".join(lines[:end])


def stopped_ranks(workspace: Workspace) -> list[int]:
    """Ranks of an execution that are stopped by a signal or a debugger."""
    stopped = [one.pid for one in helpers(workspace) if process.is_stopped(one.pid)]
    return sorted(int(rank) for pid in stopped if (rank := process.variable(pid, "RANK")))
