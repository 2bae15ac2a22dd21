"""Catalog for clients: metrics, verbs, states, presets."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from server.schemas.states import State
from trainer.contract.evaluations import EvaluationKind
from trainer.contract.metrics import Format, Holds, MetricSource
from trainer.contract.reasons import Reason


class MetricView(BaseModel):
    """A metric of the registry: name, unit and format of a key, for charts and tables."""

    key: str
    label: str
    """Display name of the metric."""
    unit: str
    """Unit of the value; empty for none."""
    description: str
    """Description of the metric."""
    source: MetricSource
    """Source: step (reported by each step), rate (derived from its duration) or evaluation."""
    format: Format
    """Display format of the value."""
    short: str
    """Name in a line with others; empty is the label."""
    holds: Holds
    """When progress has its newest value: always, while the trainer is alive, or while it makes
    steps."""
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
    changes_in: list[State]
    """Those in which it changes something: elsewhere it repeats what the state already says."""


class ReasonView(BaseModel):
    """A reason of a state, in words."""

    code: Reason
    """Stable code of the reason."""
    noun: str
    """The cause as a noun phrase, such as "a crash"."""
    yields: str | None
    """What a run that makes way for it did, for its history; null for other reasons."""


class ExtendModeView(BaseModel):
    """A way to continue the schedule of a run."""

    mode: str
    """Value of `schedule.mode`."""
    description: str
    """Description of the mode."""
    fields: list[str]
    """Fields of `schedule` that shape its curve."""


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
    kilowatt_hour_joules: float
    """A kilowatt-hour, in joules."""
    reasons: list[ReasonView]
    """Reasons of states, attempts and jobs."""
    extend_modes: list[ExtendModeView]
    """Modes of an extend."""
    extend_lengths: dict[str, str]
    """Fields that give the length of an extend, one at a time, with their label."""
    horizons: dict[str, str]
    """Fields that give the horizon of a spec, one at a time, with their unit."""
    data_sources: dict[str, list[str]]
    """Optional fields of `data`, and the sources that read each."""
    presets: dict[str, dict[str, Any]]
    """Presets with the values they set."""
    choices: dict[str, dict[str, list[str]]]
    """Accepted values of enumerated fields, by body and JSON pointer."""
    bounds: dict[str, dict[str, dict[str, int | float]]]
    """Bounds of fields, by body and JSON pointer: min, max, step and maxlength, as HTML names them;
    of a list, those of its items."""
