"""Watch: this daemon's observations of one process directory, in watched seconds.

No observation outlives the daemon; a new daemon observes the same state again. Waits are counted in
watched seconds, not on the wall clock, and a late tick counts as a short one: after a sleep of the
daemon or machine, trainers must not count as stalled.
"""

from __future__ import annotations

import json
import math
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from server.launch import torchrun
from server.launch.launcher import EngineWait, Handle, Launcher, Liveness, Workspace
from server.machine import kernel_log
from trainer.contract import commands, journal
from trainer.contract.reasons import Reason
from trainer.contract.rundir import INBOX, LOCK, OUTBOX, ProcessIdentity

LONGEST_TICK_SECONDS = 5.0
ORPHAN_GRACE_SECONDS = 2.0


class Presence(StrEnum):
    """Liveness of an execution. unknown: its process was never recorded. lingering: it is gone, its
    child processes are not. unreachable: its launcher does not answer now. waiting: its engine has
    not started it."""

    none = "none"
    unknown = "unknown"
    alive = "alive"
    waiting = "waiting"
    unreachable = "unreachable"
    lingering = "lingering"
    gone = "gone"


@dataclass
class Watch:
    """One directory under observation. silence, since_step: watched seconds.

    silence counts since the outbox last changed, since_step since the last escalation step.
    """

    workspace: Workspace
    launcher: Launcher
    handle: Handle = field(default_factory=dict)
    exit_code: int | None = None
    silence: float = 0.0
    since_step: float = 0.0
    watched: float = 0.0
    stall_step: int = 0
    stalled: str | None = None
    exhausted: bool = False
    inbox_failed: bool = False
    inbox_is_full: bool = False
    oom_kills: int = field(default_factory=lambda: kernel_log.memory_group().oom_kills)
    _dead: bool = False
    _last_look: float | None = None
    _outbox: tuple[int, int, int] | None = None
    _inbox: journal.Writer | None = None
    _sent: set[str] = field(default_factory=set)
    _sent_ids: set[str] = field(default_factory=set)

    @property
    def directory(self) -> Path:
        return self.workspace.directory

    # --- observe ---------------------------------------------------------------------------------

    def update(self, monotonic: float) -> None:
        """Count the time since the last tick, and check whether the outbox changed."""
        passed = 0.0 if self._last_look is None else monotonic - self._last_look
        passed = min(max(passed, 0.0), LONGEST_TICK_SECONDS)
        self._last_look = monotonic
        self.watched += passed
        self.since_step += passed
        self.silence += passed
        seen = _stat(self.directory / OUTBOX)
        if seen != self._outbox:
            self._outbox, self.silence, self.exhausted = seen, 0.0, False

    def presence(self, recorded: Handle) -> Presence:
        """Liveness of the directory's process. `recorded`: the handle in the row."""
        if self.launcher.is_known(recorded):
            self.handle = recorded
        if self.exit_code is None:
            self.exit_code = self.launcher.exit_code(self.workspace)
        if self.is_known:
            liveness = self.launcher.is_alive(self.workspace, self.handle)
            if liveness is not Liveness.gone:
                return Presence(liveness)
            if not self._dead:
                self._dead, self.exhausted = True, False  # it may have written after the last read
        else:
            starting = self.launcher.starting(self.workspace)
            if starting is Liveness.waiting:
                return Presence.waiting
            if starting is Liveness.alive or self.watched < ORPHAN_GRACE_SECONDS:
                return Presence.unknown
        leftovers = self.launcher.has_leftovers(self.workspace)
        return Presence.lingering if leftovers else Presence.gone

    @property
    def is_known(self) -> bool:
        """True if the started process is recorded."""
        return self.launcher.is_known(self.handle)

    @property
    def lives(self) -> bool:
        """True if the process was alive when last observed."""
        return self.is_known and not self._dead

    @property
    def process(self) -> ProcessIdentity | None:
        """The process on this machine whose exit ends this execution."""
        return self.launcher.process(self.handle)

    @property
    def engine_wait(self) -> EngineWait | None:
        """Cause of an engine's delay: the execution is not started, or its liveness is unknown."""
        return self.launcher.waits(self.workspace, self.handle)

    @property
    def is_stopped(self) -> bool:
        return self.launcher.is_stopped(self.handle)

    @property
    def stopped_ranks(self) -> list[int]:
        """Ranks stopped by a signal, for which the other ranks wait. Searches /proc."""
        return torchrun.stopped_ranks(self.workspace) if self.launcher.name == torchrun.NAME else []

    @property
    def waits_for_space(self) -> bool:
        """True if the process reports in its lock file that it waits for disk space."""
        try:
            holder = json.loads((self.directory / LOCK).read_bytes())
            return holder.get("waiting") == Reason.disk_full
        except (OSError, ValueError, AttributeError):
            return False

    # --- send ------------------------------------------------------------------------------------

    def sent(self) -> frozenset[str]:
        """Kinds of the commands in the inbox."""
        with suppress(OSError, journal.JournalError):
            self._open_inbox()
        return frozenset(self._sent)

    def note_sent(self, kind: str) -> None:
        """Mark a command that could not be written as sent, so that a signal is due immediately."""
        self._sent.add(kind)
        self.since_step, self.inbox_failed = math.inf, True

    def send(self, command: commands.Command) -> None:
        """Append the command durably, once: a command already in the inbox is not repeated.

        Raises OSError, JournalError, also if the inbox was deleted or replaced.
        """
        inbox = self._open_inbox()
        if not inbox.is_at_path():
            raise journal.JournalError(f"{inbox.path} was deleted or replaced")
        if command.id in self._sent_ids:
            return
        body = command.model_dump(mode="json", exclude_none=True)
        inbox.append(body, durable=True)
        self._note(body)

    def _open_inbox(self) -> journal.Writer:
        if self._inbox is None:
            path = self.directory / INBOX
            self._inbox = journal.Writer.reopen(path)
            for record in _records(path):
                self._note(record)
        return self._inbox

    def _note(self, body: dict[str, object]) -> None:
        self._sent.add(str(body.get("kind")))
        self._sent_ids.add(str(body.get("id")))

    # --- the end ---------------------------------------------------------------------------------

    def close(self) -> None:
        """Close the inbox; a live process keeps running."""
        if self._inbox is not None:
            self._inbox.close()
            self._inbox = None


def _stat(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def _records(path: Path) -> list[dict[str, object]]:
    reader, records = journal.JournalReader(path), []
    batch = reader.read()
    while batch.records:
        records += batch.records
        batch = reader.read(batch.offset, batch.next_seq)
    return records
