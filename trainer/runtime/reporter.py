"""Reporter: writes the trainer's events to the outbox, fsynced where required.

While the disk is full, the trainer waits at the step boundary with the unwritten record, and
continues when there is space again. No record is lost or duplicated.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from typing import Any

from trainer.contract import events, journal, units

SYNC_SECONDS = 1.0
RETRY_SECONDS = 0.5


class Reporter:
    """Writes events. Calls on_wait(reason, then None) outside the journal while it waits."""

    def __init__(
        self,
        writer: journal.Writer,
        on_wait: Callable[[str | None], None] = lambda reason: None,
        should_give_up: Callable[[], bool] = lambda: False,
    ) -> None:
        self._writer = writer
        self._on_wait, self._should_give_up = on_wait, should_give_up
        self._synced_at = time.monotonic()
        self._syncing: threading.Thread | None = None
        self._failure: OSError | None = None

    def emit(self, event: events.TrainerEvent) -> None:
        """Append the event; lifecycle events are on disk when this returns.

        Raises JournalFull only after `should_give_up` said so, OSError when the disk fails.
        """
        record = finite(event.model_dump(mode="json"))
        self._append(record)
        if events.is_durable(event):
            self.sync()
        else:
            self.sync_if_due()

    def sync_if_due(self) -> None:
        """fsync step records once a second, in a thread: an fsync takes 5 to 40 ms, which was up to
        4 % of a CPU run's time. Raises a failure of the previous fsync, up to a second late.
        """
        if time.monotonic() - self._synced_at < SYNC_SECONDS:
            return
        self._raise_failure()
        if self._syncing is None or not self._syncing.is_alive():
            self._synced_at = time.monotonic()
            self._syncing = threading.Thread(target=self._sync_beside, daemon=True)
            self._syncing.start()

    def sync(self) -> None:
        """Flush: all records so far are on disk when this returns."""
        if self._syncing is not None:
            self._syncing.join()
        self._raise_failure()
        self._writer.sync()
        self._synced_at = time.monotonic()

    def _sync_beside(self) -> None:
        try:
            self._writer.sync()
        except OSError as error:
            self._failure = error

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _append(self, record: dict[str, Any]) -> None:
        try:
            self._writer.append(record)
            return
        except journal.JournalFull:
            waited_from = time.monotonic()
            self._on_wait("disk_full")
        self._wait_for_room(record)
        self._on_wait(None)
        waited = time.monotonic() - waited_from
        notice = events.Notice(
            level="warning",
            code="disk_full",
            message=f"the disk was full: the trainer waited {units.duration(waited)} and continued",
            data={"seconds": waited},
        )
        self._append(finite(notice.model_dump(mode="json")))

    def _wait_for_room(self, record: dict[str, Any]) -> None:
        while True:
            if self._should_give_up():
                raise journal.JournalFull(f"{self._writer.path}: no space, and asked to end")
            time.sleep(RETRY_SECONDS)
            try:
                self._writer.append(record)
                return
            except journal.JournalFull:
                continue


class Mute(Reporter):
    """Reporter of a rank other than 0: writes nothing."""

    def __init__(self) -> None:
        pass

    def emit(self, event: events.TrainerEvent) -> None:
        pass

    def sync_if_due(self) -> None:
        pass

    def sync(self) -> None:
        pass


def finite(value: Any) -> Any:
    """Replace NaN and infinities in a JSON value by None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, list):
        return [finite(v) for v in value]
    return value
