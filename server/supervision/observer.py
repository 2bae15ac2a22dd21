"""Observes executions: the processes of attempts and jobs, each through its directory."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator

from server.database.tables import Attempt, Execution, Job
from server.launch import registry
from server.supervision import decide, stall_timeout
from server.supervision.context import SupervisorContext
from server.supervision.watch import Presence, Watch
from trainer.contract.rundir import ProcessIdentity

SHARED_DISK_SECONDS = 90.0  # delay until a write on a node is visible here


class Observer:
    """Watched directories. watches: by the id of the execution."""

    def __init__(
        self, context: SupervisorContext, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._context, self._clock = context, clock
        self.watches: dict[int, Watch] = {}

    def advance(self) -> None:
        """Count the time since the last tick for every watched directory."""
        now = self._clock()
        for watch in self.watches.values():
            watch.update(now)

    def living(self) -> Iterator[ProcessIdentity]:
        """Processes whose end should be detected immediately."""
        for watch in self.watches.values():
            if watch.lives and (found := watch.process) is not None:
                yield found

    def leave(self) -> None:
        """Release all processes; they keep running."""
        for watch in self.watches.values():
            self._release(watch)
        self.watches.clear()
        for launcher in self._context.launchers.values():
            launcher.leave()

    def _release(self, watch: Watch) -> None:
        """Stop watching a directory; a child that has not exited yet is reaped later."""
        watch.close()
        watch.launcher.release(watch.workspace)

    def keep_only(self, execution_ids: Iterable[int]) -> None:
        """Release every directory except those of these executions."""
        for execution_id in self.watches.keys() - set(execution_ids):
            self._release(self.watches.pop(execution_id))
        for launcher in self._context.launchers.values():
            launcher.reap()

    def is_alive(self, row: Attempt | Job | None) -> bool:
        """True if a process of the execution is alive, as last observed."""
        watch = self.watches.get(row.execution_id) if row is not None else None
        return watch is not None and watch.lives

    def see(self, row: Attempt | Job, *, has_begun: bool, has_commands: bool) -> decide.Seen:
        """What the decision needs of the execution's process."""
        watch = self._watch(row.execution)
        presence = watch.presence(row.execution.handle)
        if presence is not Presence.alive:
            wait = watch.engine_wait if presence in _ENGINE_HAS_IT else None
            return decide.Seen(
                presence=presence,
                drained=watch.exhausted,
                step=row.execution.escalation,
                since_step=watch.since_step,
                engine_waits=(wait.reason, wait.message) if wait is not None else None,
            )
        sent = watch.sent()
        has_to_end = not _ENDS.isdisjoint(sent)
        return decide.Seen(
            presence=presence,
            has_begun=has_begun,
            sent=sent,
            has_commands=has_commands and not watch.inbox_failed,
            step=row.execution.escalation,
            since_step=watch.since_step,
            silence=watch.silence,
            timeout=self._stall_timeout(row, watch),
            stall_step=watch.stall_step,
            is_stopped=watch.is_stopped or (has_to_end and bool(watch.stopped_ranks)),
            waits_for_space=watch.silence >= decide.DISK_SILENCE_SECONDS and watch.waits_for_space,
        )

    def _watch(self, execution: Execution) -> Watch:
        watch = self.watches.get(execution.id)
        return watch or self.keep(execution, self._context.watch(execution))

    def keep(self, execution: Execution, watch: Watch) -> Watch:
        """Watch a directory from now on, of an execution that has just been launched."""
        watch.update(self._clock())
        self.watches[execution.id] = watch
        return watch

    def _stall_timeout(self, row: Attempt | Job, watch: Watch) -> float:
        least = self._context.settings.stall_seconds
        if row.execution.launcher not in registry.ON_THIS_MACHINE:
            least += SHARED_DISK_SECONDS
        if watch.silence < least:
            return least
        with self._context.db.read() as session:
            return stall_timeout.of(session, row, least)


_ENGINE_HAS_IT = frozenset({Presence.waiting, Presence.unreachable})
_ENDS = frozenset({"pause", "cancel"})
