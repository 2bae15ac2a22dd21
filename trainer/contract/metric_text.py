"""A metric's value as text, with its unit, in the format of the registry."""

from __future__ import annotations

from trainer.contract import units
from trainer.contract.metrics import BY_KEY, Metric

_WRITERS = {
    "rate": units.rate,
    "bytes": units.num_bytes,
    "seconds": units.duration,
    "watts": units.watts,
    "celsius": units.celsius,
}


def shown(key: str, value: float | None) -> str:
    """'3.2101', '42.1 %', '55,700 tok/s'; a dash for None. key: also one of a newer registry."""
    metric = BY_KEY.get(key)
    return units.significant(value) if metric is None else _text(metric, value)


def named(key: str, value: float | None) -> str:
    """The value after the metric's short name: 'val bpb 0.8123'."""
    metric = BY_KEY.get(key)
    return f"{metric.name if metric else key} {shown(key, value)}"


def heading(key: str) -> str:
    """The metric's short name as the heading of a column of numbers: '>LOSS'."""
    return f">{BY_KEY[key].name.upper()}"


def _text(metric: Metric, value: float | None) -> str:
    if metric.format == "number":
        return units.fixed(value, metric.digits)
    if metric.format == "percent":
        return units.percent(value, metric.digits)
    return _WRITERS[metric.format](value)
