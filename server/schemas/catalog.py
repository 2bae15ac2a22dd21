"""Catalog of what interfaces offer: metrics, verbs, states, presets."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel

from server.schemas.states import State


class MetricView(BaseModel):
    """A metric of the registry: what a chart or table needs to know about a key."""

    key: str
    label: str
    """Name of the metric for people."""
    unit: str
    """Unit of the value; empty for none."""
    description: str
    """What it is."""
    source: Literal["step", "rate", "evaluation"]
    """step: reported by each step; rate: from its duration; evaluation."""
    format: Literal["number", "integer", "percent", "bytes", "seconds"]
    """How the value is written."""
    digits: int
    """Decimals shown."""
    gauge: str | None
    """Name of the Prometheus gauge without its prefix; null for none."""


class VerbView(BaseModel):
    verb: str
    """Verb."""
    legal_in: list[State]
    """States in which the verb is legal."""


class Catalog(BaseModel):
    """GET /v1/catalog: what interfaces offer, so that none keeps a list of its own."""

    metrics: list[MetricView]
    """The registry of metrics."""
    verbs: list[VerbView]
    """Verbs of a run and the states in which each is legal."""
    requests: list[VerbView]
    """Requests beside the verbs and the states in which each can succeed."""
    states: list[State]
    """States of a run."""
    settled_states: list[State]
    """States in which no process of the run is alive or about to start."""
    presets: dict[str, dict[str, Any]]
    """Presets with the values they set."""
    choices: dict[str, dict[str, list[str]]]
    """Fields that take one of a few words, by JSON pointer."""
