"""Entry point of every job process: `python -P -m trainer.jobs JOB_DIR`.

A job has a directory with the same outbox, inbox, exit record and lock as an attempt.
"""

from __future__ import annotations

from trainer.runtime import early_signals

if __name__ == "__main__":
    early_signals.install()  # before the imports below, which take a second

import importlib
import sys
from pathlib import Path
from typing import Any

from trainer.contract import events, orders
from trainer.contract.orders import JobOrder
from trainer.contract.reasons import Reason
from trainer.runtime import process, threads

MODULES = {
    "prepare": "trainer.jobs.prepare",
    "import": "trainer.jobs.import_nanochat",
    "export": "trainer.jobs.export",
    "evaluate": "trainer.jobs.evaluate",
    "sample": "trainer.jobs.sample",
    "serve": "trainer.jobs.serve",
    "audit": "trainer.jobs.audit",
}


def main(argv: list[str]) -> int:
    """Exit status: 0 ended in order, 1 failed with an exit record, 2 not started."""
    if len(argv) != 2:
        print("usage: python -m trainer.jobs JOB_DIR", file=sys.stderr)
        return 2
    threads.wait_asleep()
    directory = Path(argv[1]).absolute()
    order = orders.read(directory, JobOrder)
    own = process.begin(directory, order.job_id, 0, order.token)
    try:
        result = _run(order, own)
        stopped = stop_requested(own)
        ended = events.Ended(
            outcome="cancelled" if stopped and not result else "completed",
            reason=Reason.requested if stopped and not result else Reason.finished,
            result=result,
        )
    except BaseException as error:  # recorded in exit.json before the process ends
        process.log_traceback(error)
        ended = _failure(error)
    own.end(ended)
    return 1 if ended.outcome == "failed" else 0


def stop_requested(own: process.Process) -> bool:
    """True if the job was cancelled or got a signal to end; polled between pieces of work."""
    return own.control.wants_attention()


def _run(order: JobOrder, own: process.Process) -> dict[str, Any]:
    module = importlib.import_module(MODULES[order.job])
    return module.run(order, own)


def _failure(error: BaseException) -> events.Ended:
    reason, message = process.explain(error)
    if reason is Reason.crashed:
        reason = Reason.job_failed
    return events.Ended(outcome="failed", reason=reason, message=message)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
