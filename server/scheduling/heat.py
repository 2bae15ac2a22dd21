"""Power and heat of a device by its policy: the rule in force, and when it is too hot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import TypeAdapter

from server.scheduling import hours
from server.scheduling.hours import Price
from server.schemas.policies import PowerRule

HOT_SECONDS = 10.0  # time at the ceiling before runs yield: a short peak costs no save
COOL_DEGREES = 10.0  # margin below the ceiling, and its duration, before a run resumes
COOL_SECONDS = 60.0
_RULES = TypeAdapter(list[PowerRule])


def rule_at(column: list[Any] | None, now: float, prices: Sequence[Price] = ()) -> PowerRule | None:
    """The first rule in a policy's column whose hours are open; None without one."""
    for rule in _RULES.validate_python(column or []):
        if hours.opening(hours.rules(rule.hours), now, prices).is_open:
            return rule
    return None


@dataclass
class Heat:
    """Temperature ceilings: devices that are too hot. Times on a monotonic clock.

    A device becomes too hot once it has been at its ceiling for HOT_SECONDS, and is cool again
    once it has been COOL_DEGREES below it for COOL_SECONDS: a run yields and resumes at most
    once in that time.
    """

    _since: dict[str, float] = field(default_factory=dict)
    _hot: set[str] = field(default_factory=set)

    def update(self, device: str, celsius: float | None, ceiling: float | None, now: float) -> bool:
        """True if the device is too hot. ceiling: None is off; celsius: None keeps the state."""
        if ceiling is None:
            self._hot.discard(device)
            self._since.pop(device, None)
            return False
        if celsius is None:
            return device in self._hot
        is_hot = device in self._hot
        turns = celsius <= ceiling - COOL_DEGREES if is_hot else celsius >= ceiling
        if not turns:
            self._since.pop(device, None)
        elif now - self._since.setdefault(device, now) >= (COOL_SECONDS if is_hot else HOT_SECONDS):
            self._hot ^= {device}
            self._since.pop(device, None)
        return device in self._hot
