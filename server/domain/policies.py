"""Policies of devices: hours, and the other programs that runs make way for."""

from __future__ import annotations

from sqlalchemy.orm import Session

from server.database.tables import PlacePolicy
from server.domain.run_rows import hours_column
from server.schemas import PlacePolicyView


def get(session: Session, place: str) -> PlacePolicyView:
    """The policy of a device; always open where none was set."""
    row = session.get(PlacePolicy, place)
    if row is None:
        return PlacePolicyView()
    hours = PlacePolicyView.model_validate_json(f'{{"hours": {row.hours or "null"}}}').hours
    return PlacePolicyView.model_validate({"hours": hours, "neighbours": row.neighbours})


def put(session: Session, place: str, policy: PlacePolicyView, now: float) -> None:
    """Replace the policy of a device."""
    neighbours = policy.neighbours.model_dump(mode="json") if policy.neighbours else None
    row = session.get(PlacePolicy, place) or PlacePolicy(place=place)
    row.hours, row.neighbours, row.updated_at = hours_column(policy.hours), neighbours, now
    session.add(row)
