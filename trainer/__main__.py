"""Entry point of the trainer process: `python -P -m trainer ATTEMPT_DIR`. The directory has its
order, and the outbox for its events. The process does not depend on the daemon.
"""

from __future__ import annotations

from trainer.runtime import early_signals

if __name__ == "__main__":
    early_signals.install()  # before the imports below, which take a second

import os
import socket
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from trainer.checkpoint import takeover
from trainer.contract import events, failpoint, orders
from trainer.contract.orders import AttemptOrder
from trainer.contract.reasons import Reason
from trainer.contract.rundir import Held
from trainer.runtime import lost_rank, process, slurm_ranks, threads
from trainer.runtime.peers import ELSEWHERE
from trainer.runtime.rank_process import RankProcess
from trainer.runtime.rendezvous import Rendezvous, Terminated


def main(argv: list[str]) -> int:
    """Exit status: 0 ended in order, 1 failed with an exit record, 2 not started."""
    if len(argv) != 2:
        print("usage: python -m trainer ATTEMPT_DIR", file=sys.stderr)
        return 2
    threads.wait_asleep()
    directory = Path(argv[1]).absolute()
    order = orders.read(directory, AttemptOrder)
    if order.num_ranks > 1 and slurm_ranks.is_task():
        slurm_ranks.join_tasks(directory)
    failpoint.hit("trainer.begin")  # not before the rank is known
    rank = int(os.environ.get("RANK", "0")) if order.num_ranks > 1 else 0
    status = _lead(directory, order) if rank == 0 else _follow(directory, order, rank)
    if order.num_ranks > 1:  # threads that wait for a lost rank would block the interpreter's exit
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status


def _lead(directory: Path, order: AttemptOrder) -> int:
    own = process.begin(directory, order.run_id, order.attempt, order.token)
    try:
        with takeover.run_lock(order, _Waiting(own).tick):
            ended = _train(order, own, 0)
    except BaseException as error:  # recorded in exit.json before the process ends
        ended = _failure(error, own)
        if ended.outcome == "failed":
            process.log_traceback(error)
    own.end(ended)
    failpoint.hit("trainer.exit")
    return 1 if ended.outcome == "failed" else 0


class _Waiting:
    """Wait while an earlier trainer holds the run's lock: reports it once, ends on SIGTERM."""

    def __init__(self, own: process.Process) -> None:
        self._own, self._is_reported = own, False

    def tick(self) -> None:
        if self._own.control.terminated:
            raise Terminated("SIGTERM while an earlier trainer of this run was alive")
        if not self._is_reported:
            detail = "for an earlier trainer of this run to end"
            self._own.reporter.emit(events.Stage(stage="waiting", detail=detail))
        self._is_reported = True


def _follow(directory: Path, order: AttemptOrder, rank: int) -> int:
    """Run a rank other than 0: the same training, without journals, checkpoints and locks."""
    own = RankProcess(directory, rank)
    try:
        ended = _train(order, own, rank)
    except BaseException as error:
        ended = _failure(error, own)
        if ended.outcome == "failed":
            process.log_traceback(error)
    own.end(ended)
    return 1 if ended.outcome == "failed" else 0


def _train(order: AttemptOrder, own: process.Process | RankProcess, rank: int) -> events.Ended:
    if order.num_ranks == 1 and own.control.terminated:
        raise Terminated("SIGTERM before training began")
    own.reporter.emit(events.Stage(stage="loading", detail="torch"))
    with _rendezvous(order, own, rank):
        from trainer.runtime import peer_watch, world
        from trainer.train import checkpointing, loop, setup

        failpoint.hit("trainer.load")
        ranks = world.join(order.num_ranks, order.device_of(rank))
    peer_watch.start(ranks, lambda lost: _end(lost, own))
    parts = setup.build(order, own.reporter, own.control, world=ranks)
    try:
        ended = loop.run(parts)
    finally:
        checkpointing.drain(parts)
        parts.close()
    ranks.leave()
    return ended


def _rendezvous(
    order: AttemptOrder, own: process.Process | RankProcess, rank: int
) -> AbstractContextManager[None]:
    if order.num_ranks == 1:
        return nullcontext()
    return Rendezvous(
        own.directory,
        rank,
        order.devices,
        lambda: own.control.terminated,
        lambda cause: _end(cause, own),
    )


def _end(cause: Exception, own: process.Process | RankProcess) -> int:
    """Record the end of a process whose main thread is blocked; returns its exit status."""
    ended = _failure(cause, own)
    own.end(ended)
    return 1 if ended.outcome == "failed" else 0


def _failure(error: BaseException, own: process.Process | RankProcess) -> events.Ended:
    if isinstance(error, Terminated):
        return events.Ended(outcome="terminated", reason=Reason.terminated, message=str(error))
    reason, message = process.explain(error)
    if isinstance(error, Held):
        message = "another trainer of this run is alive"
    if reason is Reason.rank_lost and isinstance(own, process.Process):
        host = socket.gethostname()
        members = [
            (m.rank, m.device, m.pid if m.host == host else ELSEWHERE)
            for m in getattr(error, "members", [])
        ]
        reason, message = lost_rank.find(own.directory, members, message)
    step = getattr(error, "step", None)
    return events.Ended(outcome="failed", reason=reason, step=step, message=message)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
