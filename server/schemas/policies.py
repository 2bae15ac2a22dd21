"""Policies of devices: hours, other programs, power and heat."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from trainer.contract.spec import Hours, ShortText, Strict


class NeighbourRule(Strict):
    """Rule for other programs on a device: which of them make runs yield it."""

    least_bytes: Annotated[int, Field(ge=0, le=10**15)] = 512_000_000
    """Minimum device memory of a program that counts, in bytes."""
    yield_to: Annotated[list[ShortText], Field(max_length=64)] = []  # noqa: RUF012
    """Names of programs that always count, whatever memory they use."""
    ignore: Annotated[list[ShortText], Field(max_length=64)] = []  # noqa: RUF012
    """Names of programs that never count; those of the desktop never do."""


class PowerRule(Strict):
    """Power limit and temperature ceiling of a device; the first rule with open hours applies."""

    power_limit_watts: Annotated[float, Field(ge=1, le=10_000)] | None = None
    """Power limit while a run uses the device, in watts; null leaves it unchanged."""
    ceiling_celsius: Annotated[float, Field(ge=30, le=120)] | None = None
    """Temperature at which runs yield the device, in degrees Celsius; null is no ceiling."""
    hours: Hours | None = None
    """When the rule applies; null is always."""


class PlacePolicyView(Strict):
    """Policy of a device, set by the machine's owner: hours, other programs, power and
    temperature."""

    hours: Hours | None = None
    neighbours: NeighbourRule | None = None
    """Other programs for which runs yield the device; null is none."""
    power: Annotated[list[PowerRule], Field(max_length=16)] | None = None
    """Power limits and temperature ceilings; the first rule whose hours are open applies."""


class PlacePolicyAnswer(PlacePolicyView):
    """A device's policy, and the problems in applying it."""

    problems: list[str] = []  # noqa: RUF012 - pydantic copies it
