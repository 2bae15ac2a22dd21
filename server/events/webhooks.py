"""Webhooks: delivers a run's events to the URLs of its `notify`.

Each is delivered at least once. The last event examined and the pending deliveries are one small
file, written before anything is sent: a restart loses nothing and repeats at most the delivery in
progress; `id` identifies a repeat. Nothing waits for this thread. What fails is an event of its
run, once when it begins to fail and once more when it is delivered or given up.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import func, select

from server.database import tables
from server.database.db import Database
from server.domain import events
from server.domain.states import YIELDS, State
from server.events.commit_thread import CommitThread
from server.guard.tokens import read_or_make
from server.webhook_receivers import masked
from trainer.contract import units
from trainer.contract.durable import write_durably
from trainer.contract.reasons import Reason

SECRET, PLACE = "notify-secret", "notices.json"  # in the data directory
WAITS_SECONDS = (5, 30, 120, 600, 3600)  # then the last one again
GIVE_UP_SECONDS = 3 * 86_400.0
IDLE_SECONDS = 60.0
MAX_WAITING = 1000  # to be delivered; the oldest go first
KEPT_FAILURES_SECONDS = 7 * 86_400.0  # how long what was given up is reported
KEPT_FAILURES = 20
KIND = "webhook"  # of the events

log = logging.getLogger("traind.notices")

SendWebhook = Callable[[str, bytes, dict[str, str]], str | None]


@dataclass
class Delivery:
    """One notice for one URL. body: the JSON as it is sent, each time the same bytes.

    why: error of the last try. reported: whether an event of the run reports it.
    """

    url: str
    body: str
    since: float
    due: float
    tries: int = 0
    run: str = ""
    why: str = ""
    reported: bool = False

    @property
    def what(self) -> str:
        return str(json.loads(self.body).get("what", "?"))

    def failed(self, now: float, why: str) -> None:
        """Schedule a retry after a failure."""
        self.due = now + WAITS_SECONDS[min(self.tries, len(WAITS_SECONDS) - 1)]
        self.tries, self.why = self.tries + 1, why

    def is_due(self, now: float) -> bool:
        """True if a retry is due, also if the clock was set back: no wait exceeds the last one."""
        return not now < self.due <= now + WAITS_SECONDS[-1]

    def is_given_up(self, now: float) -> bool:
        """True after the time limit and MIN_TRIES tries: a machine may sleep, or its clock jump."""
        return now - self.since > GIVE_UP_SECONDS and self.tries >= len(WAITS_SECONDS)


@dataclass
class GivenUp:
    """A notice that was never delivered. url: masked."""

    url: str
    what: str
    why: str
    at: float


@dataclass
class DeliveryState:
    """after: id of the last event examined."""

    after: int
    waiting: list[Delivery] = field(default_factory=list)
    given_up: list[GivenUp] = field(default_factory=list)


def begin_after(root: Path, event_id: int) -> None:
    """Skip events up to this one: they were delivered before the database was restored."""
    kept: dict[str, Any] = {"waiting": [], "given_up": []}
    with suppress(OSError, ValueError, TypeError):
        kept |= json.loads((root / PLACE).read_bytes())
    write_durably(root / PLACE, json.dumps({**kept, "after": event_id}).encode())


class WebhookThread(CommitThread):
    """The delivery thread. `deliver(url, body, headers)` returns None when accepted, else the
    error.
    """

    def __init__(self, db: Database, root: Path, deliver: SendWebhook) -> None:
        super().__init__(db, "webhooks")
        self._root, self._deliver = root, deliver
        self._place: DeliveryState | None = None  # read at the first look
        self._lock = threading.Lock()  # of the place; never held while something is sent

    def one_pass(self) -> float:
        """A delivery that a stop interrupts is repeated after the next start."""
        try:
            due = self.run_once(time.time())
        except Exception as error:  # a busy database, a full disk: the next pass does it
            log.warning("notices wait: %s", error)
            due = None
        return IDLE_SECONDS if due is None else max(0.0, due - time.time())

    def run_once(self, now: float) -> float | None:
        """Queue new events and send what is due. Returns when the next delivery is due."""
        place = self.take_in(now)
        refused: dict[str, str] = {}  # url -> error: one try per pass for each receiver
        for one in [d for d in place.waiting if d.is_due(now)]:
            if self._ended.is_set():
                break
            self._attempt(place, one, refused, now)
        return min((d.due for d in place.waiting), default=None)

    def take_in(self, now: float) -> DeliveryState:
        """Create deliveries for new events. Also called before a run is deleted with its events."""
        with self._lock:
            self._place = place = self._place or self._load()
            after, found = self._new_deliveries(place.after, now)
            place.after = after
            if found:
                place.waiting = [*place.waiting, *found]
                self._drop_the_oldest(place, now)
                self._save(place)
            return place

    def _attempt(
        self, place: DeliveryState, one: Delivery, refused: dict[str, str], now: float
    ) -> None:
        why = refused.get(one.url) or self._send(one)
        with self._lock:
            self._note(place, one, refused, why, now)
            self._save(place)

    def _note(
        self,
        place: DeliveryState,
        one: Delivery,
        refused: dict[str, str],
        why: str | None,
        now: float,
    ) -> None:
        if one not in place.waiting:
            return  # given up meanwhile: too many wait
        if why is None:
            place.waiting.remove(one)
            self._report_taken(one)
            return
        refused[one.url] = why
        one.failed(now, why)
        log.warning("a notice to %s was not delivered: %s", masked(one.url), why)
        if one.is_given_up(now):
            self._give_up(place, one, f"for {units.duration(GIVE_UP_SECONDS)}", now)
        else:
            self._report_failing(place, one)

    def _drop_the_oldest(self, place: DeliveryState, now: float) -> None:
        for one in place.waiting[:-MAX_WAITING]:
            self._give_up(place, one, f"and more than {MAX_WAITING:,} wait", now)

    def _give_up(self, place: DeliveryState, one: Delivery, since: str, now: float) -> None:
        place.waiting.remove(one)
        given_up = GivenUp(masked(one.url), one.what, one.why, now)
        place.given_up = [*place.given_up, given_up][-KEPT_FAILURES:]
        why = f"it was not accepted {since}" + (f" ({one.why})" if one.why else "")
        self._report(one, f"given up: {why}", "error")

    # --- failures, for people --------------------------------------------------------------------

    def problems(self, now: float) -> list[str]:
        """Failed deliveries, one sentence per receiver; shown in the daemon's state."""
        place = self._place or DeliveryState(0)
        failing = {d.url: d for d in reversed(place.waiting) if d.tries}
        sentences = [
            f"notices to {masked(one.url)} are not accepted: {one.why} "
            f"({one.tries} tries; retried for {units.duration(GIVE_UP_SECONDS)})"
            for one in failing.values()
        ]
        lost = [one for one in place.given_up if now - one.at < KEPT_FAILURES_SECONDS]
        return sentences + [
            f"a notice ({one.what}) to {one.url} was given up: {one.why or 'too many were waiting'}"
            for one in lost
        ]

    def _report_failing(self, place: DeliveryState, one: Delivery) -> None:
        """Report a failing receiver once per run, while it fails."""
        same = (d for d in place.waiting if (d.url, d.run) == (one.url, one.run))
        if any(other.reported for other in same):
            return
        again = f"it is retried for {units.duration(GIVE_UP_SECONDS)}"
        one.reported = self._report(one, f"not delivered: {one.why}; {again}", "warning")

    def _report_taken(self, one: Delivery) -> None:
        if one.reported:
            self._report(one, f"delivered after {one.tries + 1} tries", "info")

    def _report(self, one: Delivery, words: str, level: str) -> bool:
        """Record an event of the run; False if the database is busy."""
        message = f"notice ({one.what}) to {masked(one.url)} {words}"
        data = {"url": masked(one.url), "what": one.what, "why": one.why, "tries": one.tries}
        try:
            with self._db.write() as session:
                if session.get(tables.Run, one.run) is not None:
                    events.record(session, KIND, message, run_id=one.run, level=level, data=data)
        except Exception as error:
            log.warning("%s (and it could not be recorded as an event: %s)", message, error)
            return False
        return True

    # --- what happened ---------------------------------------------------------------------------

    def _new_deliveries(self, after: int, now: float) -> tuple[int, list[Delivery]]:
        """The newest event, and the deliveries of every event after `after`."""
        event, run = tables.Event, tables.Run
        with self._db.read() as session:
            newest = session.scalar(select(func.max(event.id))) or 0
            rows = session.execute(
                select(event, run)
                .join(run, run.id == event.run_id)
                .where(event.id > after, event.id <= newest)
                .where(event.kind.in_(("state", "extend", "loss_spike")))
                .order_by(event.id)
            ).all()
            return newest, [
                Delivery(url, _body(what, one, owner), since=now, due=now, run=owner.id)
                for one, owner in rows
                if (what := _what(one)) is not None
                for url in owner.spec.get("notify", [])
            ]

    # --- the file --------------------------------------------------------------------------------

    def _load(self) -> DeliveryState:
        """The stored state; a new daemon starts with new events."""
        try:
            kept = json.loads((self._root / PLACE).read_bytes())
            return DeliveryState(
                int(kept["after"]),
                [Delivery(**one) for one in kept["waiting"]],
                [GivenUp(**one) for one in kept.get("given_up", [])],
            )
        except FileNotFoundError:
            pass
        except (ValueError, KeyError, TypeError) as error:
            log.warning("%s cannot be read (%s): notices start from now", PLACE, error)
        with self._db.read() as session:
            place = DeliveryState(session.scalar(select(func.max(tables.Event.id))) or 0)
        self._save(place)
        return place

    def _save(self, place: DeliveryState) -> None:
        write_durably(self._root / PLACE, json.dumps(asdict(place)).encode())

    # --- sending ---------------------------------------------------------------------------------

    def _send(self, one: Delivery) -> str | None:
        """The error, None when it was delivered. After any error the notice is kept."""
        try:
            body = one.body.encode()
            secret = read_or_make(self._root / SECRET, ours=True).encode()
            signature = hmac.new(secret, body, hashlib.sha256).hexdigest()
            headers = {"Content-Type": "application/json"}
            headers["Traind-Signature"] = f"sha256={signature}"
            return self._deliver(one.url, body, headers)
        except Exception as error:  # an unreadable secret, for example
            return f"{type(error).__name__}: {error}"


def _what(event: tables.Event) -> str | None:
    """The notice's kind, None for an event that is not delivered."""
    if event.kind == "loss_spike":
        return "spike"
    if event.kind == "extend":
        return "extended"
    after, reason = event.data.get("after"), event.data.get("reason")
    if after in (State.completed, State.failed):
        return str(after)
    if after == State.pausing and reason in YIELDS:
        return "made_way"
    if after == State.running and "made_way_at" in event.data:
        return "back"
    if after == State.paused and reason == Reason.budget_spent:
        return "budget_spent"
    return "stalled" if after == State.recovering and reason == Reason.stalled else None


def _body(what: str, event: tables.Event, run: tables.Run) -> str:
    notice: dict[str, Any] = {
        "id": event.id, "what": what, "message": event.message, "step": event.step or run.step,
        "unix_seconds": event.unix_seconds, "data": event.data,
        "run": {"id": run.id, "name": run.name, "state": run.state, "end_step": run.end_step},
    }  # fmt: skip
    return json.dumps(notice, ensure_ascii=False)
