"""What this daemon has seen of one process directory (an attempt's or a job's) since it looks.

Nothing here outlives the daemon: a new daemon looks again and comes to the same picture. Waiting is
counted in seconds that were really watched, never from the wall clock, and a tick that came late
counts as a short one: a daemon or machine that slept must not call its trainers stalled.
"""

from __future__ import annotations

import json
import signal
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from server.launch import process
from server.launch.process import Child
from server.machine import kernel_log
from trainer.contract import commands, journal, rundir
from trainer.contract.exits import Reason
from trainer.contract.rundir import INBOX, LOCK, OUTBOX, ProcessIdentity

LONGEST_TICK_SECONDS = 5.0
ORPHAN_GRACE_SECONDS = 2.0


class Presence(StrEnum):
    """unknown: its process was never recorded. lingering: it is dead, its helpers are not."""

    none = "none"
    unknown = "unknown"
    alive = "alive"
    lingering = "lingering"
    gone = "gone"


@dataclass
class Watch:
    """One directory under observation. silence, since_step: watched seconds.

    silence counts since the outbox last changed, since_step since the last escalation step.
    """

    directory: Path
    token: str
    identity: ProcessIdentity | None = None
    child: Child | None = None
    exit_code: int | None = None
    silence: float = 0.0
    since_step: float = 0.0
    watched: float = 0.0
    stall_step: int = 0
    stalled: str | None = None
    exhausted: bool = False
    oom_kills: int = field(default_factory=lambda: kernel_log.memory_group().oom_kills)
    _dead: bool = False
    _last_look: float | None = None
    _outbox: tuple[int, int, int] | None = None
    _inbox: journal.Writer | None = None
    _sent: set[str] = field(default_factory=set)
    _sent_ids: set[str] = field(default_factory=set)

    # --- seeing ----------------------------------------------------------------------------------

    def look(self, monotonic: float) -> None:
        """Count the time since the last look, and whether the outbox moved in it."""
        passed = 0.0 if self._last_look is None else monotonic - self._last_look
        passed = min(max(passed, 0.0), LONGEST_TICK_SECONDS)
        self._last_look = monotonic
        self.watched += passed
        self.since_step += passed
        self.silence += passed
        seen = _stat(self.directory / OUTBOX)
        if seen != self._outbox:
            self._outbox, self.silence, self.exhausted = seen, 0.0, False

    def presence(self, recorded: ProcessIdentity | None) -> Presence:
        """Whether the process of this directory lives. `recorded` is what the row says."""
        self.identity = recorded or self.identity
        if self.child is not None and self.exit_code is None:
            self.exit_code = self.child.poll()
        if self.identity is not None and self._is_ours(self.identity):
            return Presence.alive
        if self.identity is not None and not self._dead:
            self._dead, self.exhausted = True, False  # it may have written since the last read
        if self.identity is None and self.watched < ORPHAN_GRACE_SECONDS:
            return Presence.unknown
        return Presence.lingering if self._lingers() else Presence.gone

    def _is_ours(self, identity: ProcessIdentity) -> bool:
        return process.is_alive(identity) and process.works_in(identity.pid, self.directory)

    def _lingers(self) -> bool:
        return bool(self.helpers()) or rundir.is_held(self.directory / LOCK)

    def helpers(self) -> list[ProcessIdentity]:
        """Every live process of this directory that carries the token."""
        found = process.carriers(self.token)
        return [one for one in found if process.works_in(one.pid, self.directory)]

    def leader(self) -> ProcessIdentity | None:
        """The process that was started here and never recorded."""
        found = process.leader(self.token)
        return found if found and process.works_in(found.pid, self.directory) else None

    def kill_helpers(self) -> None:
        """SIGKILL what a dead process left behind."""
        for one in self.helpers():
            process.send(one, self.token, signal.SIGKILL)

    @property
    def is_dead(self) -> bool:
        """Whether the process was seen to be gone: there is no need to wait for its end."""
        return self._dead

    @property
    def is_stopped(self) -> bool:
        return self.identity is not None and process.is_stopped(self.identity.pid)

    @property
    def waits_for_space(self) -> bool:
        """Whether the process says, in its lock file, that it waits for room on the disk."""
        try:
            holder = json.loads((self.directory / LOCK).read_bytes())
            return holder.get("waiting") == Reason.disk_full
        except (OSError, ValueError, AttributeError):
            return False

    # --- telling ---------------------------------------------------------------------------------

    def sent(self) -> frozenset[str]:
        """Kinds of the commands in the inbox."""
        with suppress(OSError, journal.JournalError):
            self._open_inbox()
        return frozenset(self._sent)

    def note_sent(self, kind: str) -> None:
        """Count a command as told that could not be written."""
        self._sent.add(kind)

    def send(self, command: commands.Command) -> None:
        """Append the command durably, once: one that is already there is not written again."""
        inbox = self._open_inbox()
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
        """Let go of the inbox; the process, if it lives, goes on."""
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
