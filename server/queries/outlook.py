"""Outlook of a run: its expected end under its hours and those of its devices, and the cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from sqlalchemy import select
from sqlalchemy.orm import Session

from server.database.tables import Attempt, PlacePolicy, Run
from server.domain import gang
from server.scheduling.hours import Rule
from server.scheduling.outlook import Outlook, outlook
from server.scheduling.rows import rules_of
from trainer.contract.metrics import JOULES_PER_KWH


class Bill(NamedTuple):
    """energy_joules: at the mean power of the steps so far. cost: in the currency of
    the tariff or of energy_price_per_kwh."""

    energy_joules: float | None = None
    cost: float | None = None


def of_run(
    session: Session, run: Run, attempt: Attempt | None, seconds: float, now: float
) -> Outlook:
    """Outlook of a run for `seconds` of its work from `now` on."""
    places = gang.used_by(attempt) if attempt else [run.device]
    return of_hours(session, rules_of(run.hours), places, seconds, now)


def of_hours(
    session: Session,
    rules: Sequence[Rule] | None,
    places: Sequence[str],
    seconds: float,
    now: float,
) -> Outlook:
    """Outlook of work with hours on devices with hours."""
    policies = session.scalars(select(PlacePolicy.hours).where(PlacePolicy.place.in_(places)))
    hours = [rules, *map(rules_of, policies)]
    prices = session.info.get("prices", ())
    return outlook(seconds, now, [one for one in hours if one is not None], prices)


def bill(session: Session, watts: float | None, seconds: float, end: Outlook | None) -> Bill:
    """Energy and cost of `seconds` of steps at a mean power, by tariff or the daemon's price."""
    if watts is None:
        return Bill()
    joules, price = watts * seconds, end.price_per_kwh if end else None
    price = session.info.get("price_per_kwh") if price is None else price
    return Bill(joules, None if price is None else joules / JOULES_PER_KWH * price)


def mean_watts(run: Run) -> float | None:
    """Mean power over all steps of the run so far; None if its device reports no energy."""
    energy, seconds = run.totals.get("energy_joules"), run.totals.get("seconds")
    return energy / seconds if energy and seconds else None


def watts_of_device(session: Session, device: str) -> tuple[float, str] | None:
    """(mean watts, run) of the run that trained last on a device; of any for 'auto'."""
    query = select(Run).where(Run.last_step_at.is_not(None)).order_by(Run.last_step_at.desc())
    if device != "auto":
        query = query.where(Run.device == device)
    for run in session.scalars(query.limit(20)):
        if (watts := mean_watts(run)) is not None:
            return watts, run.name
    return None
