"""Entry point of the trainer process: `python -P -m trainer ATTEMPT_DIR`. Its order is in the
directory; its events go to the outbox there. It does not depend on the daemon.
"""

from __future__ import annotations

import sys
from pathlib import Path

from trainer.contract import events, failpoint, orders
from trainer.contract.orders import AttemptOrder
from trainer.contract.rundir import Held, locked
from trainer.runtime import process, threads

RUN_LOCK_SECONDS = 10.0


def main(argv: list[str]) -> int:
    """Exit status: 0 ended in order, 1 failed with an exit record, 2 not started."""
    if len(argv) != 2:
        print("usage: python -m trainer ATTEMPT_DIR", file=sys.stderr)
        return 2
    threads.wait_asleep()
    directory = Path(argv[1]).absolute()
    order = orders.read(directory, AttemptOrder)
    own = process.begin(directory, order.run_id, order.attempt, order.token)
    try:
        with locked(Path(order.run_dir) / "trainer.lock", order.token):
            ended = _train(order, own)
    except BaseException as error:  # whatever it was, it is written down before the process goes
        process.log_traceback(error)
        ended = _failure(error, own)
    own.end(ended)
    failpoint.hit("trainer.exit")
    return 1 if ended.outcome == "failed" else 0


def _train(order: AttemptOrder, own: process.Process) -> events.Ended:
    own.reporter.emit(events.Stage(stage="loading", detail="torch"))
    from trainer.train import checkpointing, loop, session

    failpoint.hit("trainer.load")
    parts = session.build(order, own.reporter, own.control)
    try:
        return loop.run(parts)
    finally:
        checkpointing.drain(parts)
        parts.close()


def _failure(error: BaseException, own: process.Process) -> events.Ended:
    reason, message = process.explain(error)
    if isinstance(error, Held):
        message = "another trainer of this run is alive"
    step = getattr(error, "step", None)
    return events.Ended(outcome="failed", reason=reason, step=step, message=message)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
