"""A daemon in a separate process with fake trainers, for campaigns that kill both."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from server.database.tables import Attempt
from server.launch import process
from tests.server.house import ROOT, House
from tests.soak import books
from tests.soak.counts import Counts
from trainer.contract.rundir import OUTBOX


class Settlement:
    """A data directory, a daemon process that is started and killed, and fake trainers with given
    behaviour.

    `house` opens the same database in this process.
    """

    def __init__(self, **manners: Any) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="soak-daemon-")
        self.house = House(Path(self._folder.name))
        self._environment = {**os.environ, "FAKE": json.dumps({"*": manners})}
        self.daemon: subprocess.Popen[str] | None = None

    def start(self, fail: str = "", sabotage: str = "") -> float:
        """Start the daemon; returns the seconds until it is ready, or dead by its failpoint."""
        began = time.monotonic()
        environment = {**self._environment, **({"TRAIND_FAIL": fail} if fail else {})}
        settings = self.house.settings
        command = [sys.executable, "-m", "tests.server.daemon_process"]
        command += [str(settings.data_dir), settings.trainer_python]
        command += [sabotage] if sabotage else []
        self.daemon = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=environment
        )
        assert self.daemon.stdout is not None
        self.daemon.stdout.readline()
        return time.monotonic() - began

    def kill(self) -> None:
        """kill -9 the daemon and wait for its end; no-op if it is dead."""
        if self.daemon is None:
            return
        self.daemon.kill()
        self.daemon.wait()
        if self.daemon.stdout is not None:
            self.daemon.stdout.close()
        self.daemon = None

    def is_dead(self) -> bool:
        return self.daemon is None or self.daemon.poll() is not None

    def completes(self, run_id: str, seconds: float = 90) -> bool:
        return self.sees(lambda: self.house.run(run_id).state == "completed", seconds)

    def sees(self, holds: Callable[[], Any], seconds: float = 30) -> bool:
        """True if the condition becomes true in time."""
        deadline = time.monotonic() + seconds
        while not holds():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
        return True

    def trainer(self, run_id: str) -> tuple[int, Attempt] | None:
        """Pid and row of the live trainer of a run, also of one that was never recorded."""
        last = self.house.last(run_id, lambda a: not a.is_over)
        found = process.leader(last.token) if last is not None else None
        return (found.pid, last) if found is not None and last is not None else None

    def place(self, attempt: Attempt) -> str:
        """Last record of an attempt, which shows its progress."""
        said = self._said(attempt)
        last = said[-1] if said else {"kind": "nothing said"}
        return f"attempt {attempt.number}, {last['kind']} {last.get('step', '')}".strip()

    def has_stepped(self, attempt: Attempt) -> bool:
        """True if the journal of an attempt has a step."""
        return any(r["kind"] == "step" for r in self._said(attempt))

    def _said(self, attempt: Attempt) -> list[dict[str, Any]]:
        paths = self.house.settings.paths
        return books.records(paths.run(attempt.run_id).attempt(attempt.number) / OUTBOX)

    def audit(self, counts: Counts) -> None:
        """Check rows against journals, and that no process is alive."""
        for words in books.differences(self.house.db, self.house.settings.paths):
            counts.fail(words)
        living = self.house.living()
        counts.expect(not living, f"processes left alive: {living}")

    def close(self) -> None:
        self.kill()
        self.house.close()
        self._folder.cleanup()
