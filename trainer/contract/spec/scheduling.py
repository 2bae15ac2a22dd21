"""Scheduling of a run: hours of the week, a price of electricity, a budget."""

from __future__ import annotations

from typing import Annotated, Literal
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, ConfigDict, Field, StringConstraints, model_validator

from trainer.contract.spec.fields import Strict, Tokens

Day = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
Clock = Annotated[str, StringConstraints(pattern=r"^([01]\d|2[0-3]):[0-5]\d$")]


def _known_zone(zone: str) -> str:
    try:
        ZoneInfo(zone)
    except (OSError, ValueError, LookupError) as error:
        raise ValueError(
            f"unknown time zone {zone!r}; zones are named like Europe/Berlin or UTC"
        ) from error
    return zone


Zone = Annotated[str, StringConstraints(max_length=64), AfterValidator(_known_zone)]


class HoursRule(Strict):
    """A weekly window of hours. A window that ends at or before its start runs past midnight and
    belongs to the day it starts on; equal times are a whole day.
    """

    model_config = ConfigDict(serialize_by_alias=True, validate_by_alias=True)

    days: Annotated[list[Day], Field(min_length=1, max_length=7)] = [  # noqa: RUF012
        "mon",
        "tue",
        "wed",
        "thu",
        "fri",
        "sat",
        "sun",
    ]
    """Days of the week on which it starts."""
    begin: Annotated[Clock, Field(alias="from")] = "00:00"
    """Start on the wall clock, HH:MM."""
    end: Annotated[Clock, Field(alias="to")] = "00:00"
    """End on the wall clock, HH:MM."""
    zone: Zone | None = None
    """Time zone of both, like Europe/Berlin; null is the machine's."""
    price_below: Annotated[float, Field(ge=-1e6, le=1e6)] | None = None
    """Open only while a kWh costs less than this, in the tariff's currency; null is any price."""


class BudgetSpec(Strict):
    """Budget of a run, which is saved and paused when it is spent; steps repeated after a failure
    count too."""

    minutes: Annotated[float, Field(gt=0, le=1e7)] | None = None
    """Minutes in training steps; null is no limit."""
    tokens: Tokens | None = None
    """Tokens trained on; null is no limit."""
    kwh: Annotated[float, Field(gt=0, le=1e6)] | None = None
    """Energy of its devices in kilowatt-hours, where they report their power; null is no limit."""

    @model_validator(mode="after")
    def _limits_something(self) -> BudgetSpec:
        if self.minutes is None and self.tokens is None and self.kwh is None:
            raise ValueError("a budget limits minutes, tokens or kwh")
        return self


Hours = Annotated[list[HoursRule], Field(max_length=32)]
Priority = Annotated[int, Field(ge=-100, le=100)]
