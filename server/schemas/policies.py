"""Policies of devices: hours, other programs, power and heat."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from trainer.contract.spec import Hours, ShortText, Strict


class NeighbourRule(Strict):
    """Which other programs on a device a run makes way for."""

    least_bytes: Annotated[int, Field(ge=0, le=10**15)] = 512_000_000
    yield_to: Annotated[list[ShortText], Field(max_length=64)] = []  # noqa: RUF012
    ignore: Annotated[list[ShortText], Field(max_length=64)] = []  # noqa: RUF012


class PowerRule(Strict):
    """Power limit and temperature ceiling of a device; the first rule with open hours holds."""

    power_limit_watts: Annotated[float, Field(ge=1, le=10_000)] | None = None
    ceiling_celsius: Annotated[float, Field(ge=30, le=120)] | None = None
    hours: Hours | None = None


class PlacePolicyView(Strict):
    """What the owner of the machine says about a device: its hours, other programs on it, and its
    power and heat."""

    hours: Hours | None = None
    neighbours: NeighbourRule | None = None
    power: Annotated[list[PowerRule], Field(max_length=16)] | None = None


class PlacePolicyAnswer(PlacePolicyView):
    """A device's policy, and what keeps it from being followed."""

    problems: list[str] = []  # noqa: RUF012 - pydantic copies it
