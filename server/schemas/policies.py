"""Policies of devices: hours, other programs, power and heat."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from trainer.contract.spec import Hours, ShortText, Strict


class NeighbourRule(Strict):
    """Rule for other programs on a device: those that a run makes way for."""

    least_bytes: Annotated[int, Field(ge=0, le=10**15)] = 512_000_000
    """Device memory, in bytes, from which a program counts."""
    yield_to: Annotated[list[ShortText], Field(max_length=64)] = []  # noqa: RUF012
    """Names of programs that count whatever they hold."""
    ignore: Annotated[list[ShortText], Field(max_length=64)] = []  # noqa: RUF012
    """Names of programs that never count; the desktop's never do."""


class PowerRule(Strict):
    """Power limit and temperature ceiling of a device; the first rule with open hours holds."""

    power_limit_watts: Annotated[float, Field(ge=1, le=10_000)] | None = None
    """Power limit while a run uses the device, in watts; null leaves it."""
    ceiling_celsius: Annotated[float, Field(ge=30, le=120)] | None = None
    """Temperature from which runs make way, in degrees Celsius; null is none."""
    hours: Hours | None = None
    """When the rule holds; null is always."""


class PlacePolicyView(Strict):
    """What the owner of the machine says about a device: its hours, other programs on it, and its
    power and heat."""

    hours: Hours | None = None
    neighbours: NeighbourRule | None = None
    """Other programs for which runs make way; null is none."""
    power: Annotated[list[PowerRule], Field(max_length=16)] | None = None
    """Power limits and temperature ceilings; the first rule whose hours are open holds."""


class PlacePolicyAnswer(PlacePolicyView):
    """A device's policy, and what keeps it from being followed."""

    problems: list[str] = []  # noqa: RUF012 - pydantic copies it
