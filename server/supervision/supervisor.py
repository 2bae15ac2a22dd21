"""The supervisor thread: runs a tick after each commit, process exit or deadline.

Each tick reads the journals, loads the unsettled rows, decides one action for each run and job
(`decide`, pure) and applies it. The same tick recovers after a start, a crash or a reboot. The
thread sleeps until a commit, the exit of a process, or the time of the next tick.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from server import lock
from server.errors import Busy, DiskFull, StorageBroken
from server.supervision import failure_guard, worklist
from server.supervision.context import SupervisorContext
from server.supervision.journal_polling import JournalPolling
from server.supervision.reconcile import Reconciler
from server.supervision.wakeup import Wakeup
from server.supervision.worklist import Worklist

log = logging.getLogger("traind.supervisor")

IDLE_SECONDS = 5.0  # interval of ticks while nothing runs; a commit wakes it at once
RETRY_SECONDS = 1.0  # after the database was busy or full
STOP_SECONDS = 150.0  # for trainers to save and exit when they stop with the daemon


class Supervisor:
    """Supervises every process of this data directory. One instance, one thread."""

    def __init__(
        self, context: SupervisorContext, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._context, self._clock = context, clock
        self._reconciler = Reconciler(context, clock)
        self._journals = JournalPolling(context)
        self._wakeup = Wakeup()
        self._thread: threading.Thread | None = None
        self._ends = self._stops_trainers = False
        self._looked = threading.Event()
        self.failure: BaseException | None = None
        self.ticks = 0

    # --- the thread ------------------------------------------------------------------------------

    def start(self, on_failure: Callable[[BaseException], None] = lambda error: None) -> None:
        """Start the thread. An unexpected error ends it and calls `on_failure`."""
        self._thread = threading.Thread(
            target=self._run, args=(on_failure,), name="supervisor", daemon=True
        )
        self._context.db.on_commit(self.wake)
        self._thread.start()

    def wait_for_first_tick(self, seconds: float) -> bool:
        """Wait for the first tick. True if all running processes were adopted within that time."""
        return self._looked.wait(seconds)

    @property
    def is_alive(self) -> bool:
        return self._thread is not None and self._thread.is_alive() and self.failure is None

    def wake(self) -> None:
        """Wake the supervisor after a commit; its own commits do not wake it."""
        if threading.current_thread() is not self._thread:
            self._wakeup.ring()

    def stop(self, *, stop_trainers: bool = False) -> None:
        """Stop the thread. Trainers keep running, unless they must save and end with the daemon."""
        self._stops_trainers = stop_trainers
        self._reconciler.shut_down(stops_trainers=stop_trainers)
        self._ends = True
        self._wakeup.ring()
        if self._thread is not None:
            self._thread.join(timeout=STOP_SECONDS + 15)
        self._journals.close()
        self._reconciler.observer.leave()
        self._wakeup.close()

    def _run(self, on_failure: Callable[[BaseException], None]) -> None:
        try:
            while not self._ends:
                self._wakeup.wait(self._try_tick())
            if self._stops_trainers:
                self._take_trainers_along()
        except BaseException as error:  # a silent end would leave every run unsupervised
            self.failure = error
            log.critical("the supervisor failed: %s", error, exc_info=error)
            on_failure(error)
        finally:
            self._looked.set()

    def _try_tick(self) -> float:
        """Run one tick; returns the seconds to sleep after it. A busy or full database, or a lack
        of file descriptors, delays the next tick: without descriptors no process can be observed.
        """
        try:
            busy = self.tick()
        except lock.Lost:
            raise  # another daemon may have taken over: exit immediately
        except (Busy, DiskFull, StorageBroken) as error:
            log.warning("the supervisor waits for the database: %s", error)
            return RETRY_SECONDS
        except OSError as error:
            log.error("the supervisor retries: %s", failure_guard.in_words(error))
            return RETRY_SECONDS
        return self._context.settings.tick_seconds if busy else IDLE_SECONDS

    def _take_trainers_along(self) -> None:
        """Tick until every trainer and job has saved and exited."""
        until = self._clock() + STOP_SECONDS
        while self._clock() < until:
            self._wakeup.wait(min(self._try_tick(), self._context.settings.tick_seconds))
            if self._reconciler.has_nothing_left:
                return
        log.error("some trainers did not exit within %.0f s", STOP_SECONDS)

    # --- one tick --------------------------------------------------------------------------------

    def tick(self) -> bool:
        """Reconcile rows with processes once: at most one action for each run and job.

        Returns True if there is something to watch.
        """
        lock.require(self._context.settings.paths.root)
        self._reconciler.observer.advance()
        self._journals.read(self._reconciler.observer.watches)
        busy = self._reconciler.reconcile(self._load())
        self._wakeup.watch(self._reconciler.observer.living())
        if self.ticks or not busy:  # the first tick finds processes, the second ingests
            self._looked.set()
        self.ticks += 1
        return busy

    def _load(self) -> Worklist:
        with self._context.db.read() as session:
            context = self._context
            around = context.scheduler_inputs() if context.scheduler_inputs is not None else None
            return worklist.load(session, context.settings.paths, context.devices, around)
