"""Control: commands from the inbox and signals, polled once per step.

Signal handlers only set a flag. SIGTERM: checkpoint, then end (the recovery policy decides what
follows). SIGUSR1 and SIGUSR2: checkpoint at the next step boundary and continue, as Slurm's and
Lightning's users expect. DUMP_SIGNAL: dump every thread's stack to the log, to diagnose a hang.
"""

from __future__ import annotations

import faulthandler
import signal
import sys
from pathlib import Path
from types import FrameType

from pydantic import ValidationError

from trainer.contract import commands, journal
from trainer.contract.rundir import DUMP_SIGNAL
from trainer.runtime import early_signals


class Control:
    """The inbox and the signals of one process; without an inbox, its signals alone."""

    def __init__(self, inbox: Path | None) -> None:
        self._reader = journal.JournalReader(inbox) if inbox else None
        self._offset, self._next_seq = 0, 0
        self._pending: list[commands.AnyCommand] = []
        self.terminated = False
        self._save_requested = False

    def install_signals(self) -> None:
        """Install the handlers for SIGTERM, SIGINT, SIGUSR1, SIGUSR2 and the stack dump."""
        signal.signal(signal.SIGTERM, self._on_terminate)
        signal.signal(signal.SIGINT, self._on_terminate)
        self.terminated |= early_signals.has_received()
        for name in ("SIGUSR1", "SIGUSR2"):
            if hasattr(signal, name):
                signal.signal(getattr(signal, name), self._on_save)
        if hasattr(faulthandler, "register"):
            faulthandler.register(DUMP_SIGNAL, file=sys.stderr, all_threads=True)

    def poll(self) -> None:
        """Read new commands; a damaged inbox is treated as empty, and signals still work."""
        if self._reader is None:
            return
        batch = self._reader.read(self._offset, self._next_seq)
        self._offset, self._next_seq = batch.offset, batch.next_seq
        for record in batch.records:
            body = {k: v for k, v in record.items() if k not in ("seq", "ts")}
            try:
                self._pending.append(commands.ADAPTER.validate_python(body))
            except ValidationError as error:
                print(f"inbox: ignored a command that is not understood: {error}", file=sys.stderr)

    def take(self) -> list[commands.AnyCommand]:
        """The commands received since the last call, in order."""
        self.poll()
        taken, self._pending = self._pending, []
        return taken

    def take_save_request(self) -> bool:
        """True if a signal requested a checkpoint since the last call."""
        asked, self._save_requested = self._save_requested, False
        return asked

    def wants_attention(self) -> bool:
        """True if long work (an evaluation) should stop at its next boundary."""
        self.poll()
        urgent = (commands.Pause, commands.Cancel, commands.EndPhase)
        return self.terminated or any(isinstance(c, urgent) for c in self._pending)

    def _on_terminate(self, signum: int, frame: FrameType | None) -> None:
        self.terminated = True

    def _on_save(self, signum: int, frame: FrameType | None) -> None:
        self._save_requested = True
