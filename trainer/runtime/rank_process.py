"""Process of a rank other than 0: its start and end.

Rank 0 is the trainer that the daemon knows: lock, journals, exit record. The others write no
events: they print to their own log, and write an exit record into `ranks/` before they exit.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from trainer.contract import events
from trainer.contract.durable import write_durably
from trainer.contract.exits import ExitRecord
from trainer.contract.rundir import rank_log, rank_record
from trainer.runtime.control import Control
from trainer.runtime.reporter import Mute


class RankProcess:
    """The process of one rank other than 0, in the directory of its attempt."""

    def __init__(self, attempt: Path, rank: int) -> None:
        self.directory = attempt
        self._record = rank_record(attempt, rank)
        self._record.parent.mkdir(exist_ok=True)
        log = os.open(rank_log(attempt, rank), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(log, 1)
        os.dup2(log, 2)
        self.reporter, self.control = Mute(), Control(None)
        self.control.install_signals()

    def end(self, ended: events.Ended) -> None:
        record = ExitRecord(
            outcome=ended.outcome,
            reason=ended.reason,
            step=ended.step,
            message=ended.message,
            unix_seconds=time.time(),
        )
        write_durably(self._record, record.model_dump_json().encode())
