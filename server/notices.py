"""Notices to the URLs of a run's `notify`: it completed, failed, stalled, spiked or was extended.

Each is delivered at least once. How far the events were looked through and what is still to be
delivered are one small file, written before anything is sent: a restart forgets nothing, and may
repeat only what was under way; `id` tells a repeat. Nothing waits for this thread, and it only
reads the database.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import func, select

from server.database import tables
from server.database.db import Database
from server.guard.tokens import read_or_make
from server.states import State
from trainer.contract.exits import Reason
from trainer.contract.rundir import write_durably

SECRET, PLACE = "notify-secret", "notices.json"  # in the data directory
WAITS_SECONDS = (5, 30, 120, 600, 3600)  # then the last one again
GIVE_UP_SECONDS = 3 * 86_400.0
QUIET_SECONDS = 1.0  # at least between two looks, however much is committed
IDLE_SECONDS = 60.0
MOST = 1000  # to be delivered; the oldest go first

log = logging.getLogger("traind.notices")


@dataclass
class Delivery:
    """One notice for one URL. body: the JSON as it is sent, each time the same bytes."""

    url: str
    body: str
    since: float
    due: float
    tries: int = 0

    def failed(self, now: float) -> Delivery | None:
        """As it is tried next; None: never again."""
        if now - self.since > GIVE_UP_SECONDS:
            return None
        wait = WAITS_SECONDS[min(self.tries, len(WAITS_SECONDS) - 1)]
        return Delivery(self.url, self.body, self.since, now + wait, self.tries + 1)


@dataclass
class Place:
    """after: the last event that was looked at."""

    after: int
    waiting: list[Delivery] = field(default_factory=list)


class Notices:
    """The thread. `tell(url, body, headers)` is whether the receiver took it."""

    def __init__(
        self, db: Database, root: Path, tell: Callable[[str, bytes, dict[str, str]], bool]
    ) -> None:
        self._db, self._root, self._tell = db, root, tell
        self._woken, self._ended = threading.Event(), threading.Event()
        self._place: Place | None = None  # read at the first look
        self._thread = threading.Thread(target=self._run, name="notices", daemon=True)

    def start(self) -> None:
        self._db.on_commit(self._woken.set)
        self._thread.start()

    def stop(self) -> None:
        """A delivery under way is repeated after the next start."""
        self._ended.set()
        self._woken.set()
        self._thread.join(timeout=1.0)

    def _run(self) -> None:
        while not self._ended.is_set():
            self._woken.clear()
            try:
                due = self.look(time.time())
            except Exception as error:  # a busy database, a full disk: the next look does it
                log.warning("notices wait: %s", error)
                due = None
            self._ended.wait(QUIET_SECONDS)
            self._woken.wait(IDLE_SECONDS if due is None else max(0.0, due - time.time()))

    def look(self, now: float) -> float | None:
        """Take in what happened, send what is due; when the next one is due."""
        self._place = place = self._place or self._kept()
        if found := self._happened(place, now):
            place.waiting = [*place.waiting, *found][-MOST:]
            self._keep(place)
        for one in [d for d in place.waiting if d.due <= now]:
            if self._ended.is_set():
                break
            place.waiting.remove(one)
            if not self._send(one) and (again := one.failed(now)):
                place.waiting.append(again)
            self._keep(place)
        return min((d.due for d in place.waiting), default=None)

    # --- what happened ---------------------------------------------------------------------------

    def _happened(self, place: Place, now: float) -> list[Delivery]:
        """The deliveries of every event after `place`, which moves on."""
        event, run = tables.Event, tables.Run
        with self._db.read() as session:
            newest = session.scalar(select(func.max(event.id))) or 0
            rows = session.execute(
                select(event, run)
                .join(run, run.id == event.run_id)
                .where(event.id > place.after, event.id <= newest)
                .where(event.kind.in_(("state", "extend", "loss_spike")))
                .order_by(event.id)
            ).all()
            place.after = newest
            return [
                Delivery(url, _body(what, one, owner), since=now, due=now)
                for one, owner in rows
                if (what := _what(one)) is not None
                for url in owner.spec.get("notify", [])
            ]

    # --- the file --------------------------------------------------------------------------------

    def _kept(self) -> Place:
        """Where it was; a daemon that never looked begins with what is new."""
        try:
            kept = json.loads((self._root / PLACE).read_bytes())
            return Place(int(kept["after"]), [Delivery(**one) for one in kept["waiting"]])
        except FileNotFoundError:
            pass
        except (ValueError, KeyError, TypeError) as error:
            log.warning("%s cannot be read (%s): notices begin anew", PLACE, error)
        with self._db.read() as session:
            place = Place(session.scalar(select(func.max(tables.Event.id))) or 0)
        self._keep(place)
        return place

    def _keep(self, place: Place) -> None:
        write_durably(self._root / PLACE, json.dumps(asdict(place)).encode())

    # --- sending ---------------------------------------------------------------------------------

    def _send(self, one: Delivery) -> bool:
        body = one.body.encode()
        secret = read_or_make(self._root / SECRET, ours=True).encode()
        signature = hmac.new(secret, body, hashlib.sha256).hexdigest()
        headers = {"Content-Type": "application/json", "Traind-Signature": f"sha256={signature}"}
        return self._tell(one.url, body, headers)


def _what(event: tables.Event) -> str | None:
    """The word for it, when it is one that is told."""
    if event.kind == "loss_spike":
        return "spike"
    if event.kind == "extend":
        return "extended"
    after, reason = event.data.get("after"), event.data.get("reason")
    if after in (State.completed, State.failed):
        return str(after)
    return "stalled" if after == State.recovering and reason == Reason.stalled else None


def _body(what: str, event: tables.Event, run: tables.Run) -> str:
    told: dict[str, Any] = {
        "id": event.id, "what": what, "message": event.message, "step": event.step or run.step,
        "unix_seconds": event.unix_seconds, "data": event.data,
        "run": {"id": run.id, "name": run.name, "state": run.state, "end_step": run.end_step},
    }  # fmt: skip
    return json.dumps(told, ensure_ascii=False)
