"""Catalog for clients: metrics, verbs, states, presets."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel

from server.schemas.states import State
from trainer.contract.evaluations import EvaluationKind


class MetricView(BaseModel):
    """A metric of the registry: name, unit and format of a key, for charts and tables."""

    key: str
    label: str
    """Display name of the metric."""
    unit: str
    """Unit of the value; empty for none."""
    description: str
    """Description of the metric."""
    source: Literal["step", "rate", "evaluation"]
    """Source: step (reported by each step), rate (derived from its duration) or evaluation."""
    format: Literal["number", "integer", "percent", "bytes", "seconds"]
    """Display format of the value."""
    digits: int
    """Number of decimals to show."""
    gauge: str | None
    """Name of the Prometheus gauge without its prefix; null for none."""


class EvaluationTypeView(BaseModel):
    """An evaluation of the registry: name, direction and metric of a kind."""

    kind: EvaluationKind
    """Kind of the evaluation."""
    label: str
    """Name in tables."""
    title: str
    """What it measures, for forms."""
    metric: str
    """Key of the metric that its values form; unit and format are those of the metric."""
    higher_is_better: bool
    """Direction: whether the highest value is the best."""
    digits: int
    """Number of decimals of a single value."""
    cost: str
    """How long it takes, where that matters; else empty."""
    job: str
    """Kind of the job that measures it outside of training."""


class VerbView(BaseModel):
    verb: str
    """Verb."""
    legal_in: list[State]
    """States in which the verb is legal."""


class Catalog(BaseModel):
    """GET /v1/catalog: what a client can offer, so that no client keeps its own list."""

    metrics: list[MetricView]
    """The registry of metrics."""
    evaluations: list[EvaluationTypeView]
    """The registry of evaluations."""
    verbs: list[VerbView]
    """Verbs of a run and the states in which each is legal."""
    requests: list[VerbView]
    """Other requests, and the states in which each can succeed."""
    states: list[State]
    """States of a run."""
    settled_states: list[State]
    """Settled states: no process of the run is alive or about to start."""
    ended_states: list[State]
    """Ended states of a run; a job ends in the same ones."""
    learning_rate_jump: float
    """Factor between the learning rates of two consecutive steps, up or down, above which an extend
    gives a warning."""
    presets: dict[str, dict[str, Any]]
    """Presets with the values they set."""
    choices: dict[str, dict[str, list[str]]]
    """Accepted values of enumerated fields, by JSON pointer."""
