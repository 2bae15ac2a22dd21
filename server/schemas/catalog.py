"""Catalog of what interfaces offer: metrics, verbs, states, presets."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel

from server.schemas.states import State


class MetricView(BaseModel):
    """A metric of the registry: what a chart or table needs to know about a key."""

    key: str
    label: str
    unit: str
    description: str
    source: Literal["step", "rate", "evaluation"]
    format: Literal["number", "integer", "percent", "bytes", "seconds"]
    digits: int
    gauge: str | None


class VerbView(BaseModel):
    verb: str
    legal_in: list[State]


class Catalog(BaseModel):
    """GET /v1/catalog: what interfaces offer, so that none keeps a list of its own."""

    metrics: list[MetricView]
    verbs: list[VerbView]
    requests: list[VerbView]
    states: list[State]
    settled_states: list[State]
    presets: dict[str, dict[str, Any]]
    choices: dict[str, dict[str, list[str]]]
