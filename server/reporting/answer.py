"""The report's content as JSON. Units: seconds, bytes, tokens, watts, joules."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from server.schemas.metrics import Series
from server.schemas.system import PeakFlops
from trainer.contract.extend import Joint
from trainer.contract.plan import BatchPlan, Hyperparameters, Parameters, PlannedShape
from trainer.contract.spec import ScheduleSpec


class RunProgress(BaseModel):
    """Progress of the run; eta_* are null once nothing is left to train."""

    state: str
    reason: str
    reason_message: str
    step: int
    end_step: int
    fraction: float
    eta_seconds: float | None
    finish_at: float | None
    eta_source: str | None
    created_at: float
    started_at: float | None
    ended_at: float | None
    last_step_at: float | None


class Hardware(BaseModel):
    """devices: name -> attempts that ran there. choices: raced or probed at the first start."""

    devices: dict[str, list[int]]
    precision: str
    deterministic: bool | None
    choices: dict[str, Any]
    versions: dict[str, str]
    vram_reserved_peak_bytes: int | None
    mfu: float | None
    mfu_causal: float | None
    peak_flops: PeakFlops | None


class CoreScore(BaseModel):
    """highlights: up to five tasks' accuracies."""

    step: int
    value: float
    identity: str
    highlights: dict[str, float]
    tasks: dict[str, float]
    not_scored: int


class PhaseReport(BaseModel):
    """steps and tokens of the present lineage. loss_start, loss_end: means of a few hundred steps.

    wall_seconds: from its start to its end (or now), pauses and failures included.
    """

    index: int
    name: str
    mode: str
    start_step: int
    planned_end_step: int
    end_step: int
    steps_done: int
    tokens: int
    training_seconds: float
    wall_seconds: float | None
    loss_start: float | None
    loss_end: float | None
    loss_lowest: float | None
    lr_start: float
    lr_end: float
    warmdown_start: int
    val_bpb: float | None
    val_bpb_step: int | None
    core: CoreScore | None
    tokens_per_second: float | None
    step_seconds: float | None
    mfu: float | None
    mfu_causal: float | None
    checkpoints: int
    newest_checkpoint: str | None
    joint: Joint | None
    discarded_steps: int
    imported: bool


class AttemptReport(BaseModel):
    """repeated_steps: done here and done again later. down_seconds: no trainer before this one."""

    number: int
    phase: str
    device: str
    start_step: int | None
    last_step: int | None
    started_at: float | None
    ended_at: float | None
    outcome: str | None
    reason: str | None
    sentence: str
    repeated_steps: int
    down_seconds: float | None
    exact_resume: str | None


class ResumeVerdict(BaseModel):
    step: int | None
    attempt: int | None
    what: str
    verdict: str
    expected: float | None
    found: float | None
    message: str


class EvaluationReport(BaseModel):
    """label: A, B, ... one letter per identity of its kind; letters are never compared."""

    kind: str
    step: int
    value: float
    identity: str
    settings: dict[str, Any]
    label: str
    attempt: int | None
    seconds: float
    unix_seconds: float
    best: bool


class EvaluationDifference(BaseModel):
    """Two values of the same weights. comparable: were they measured under the same identity?"""

    kind: str
    step: int
    before: float
    after: float
    comparable: bool
    sentence: str


class SampleReport(BaseModel):
    step: int
    prompt: str
    text: str


class Incident(BaseModel):
    unix_seconds: float
    step: int | None
    level: str
    message: str


class Moment(BaseModel):
    unix_seconds: float
    text: str


class Totals(BaseModel):
    """steps, tokens and flops of the lineage; processed_* count repeated steps as well."""

    steps: int
    tokens: int
    flops: float
    flops_per_token: int
    flops_per_token_causal: float
    ratio: float
    chinchilla_ratio: float
    chinchilla_tokens: int
    processed_steps: int
    processed_tokens: int
    lost_steps: int
    restarts: int
    training_seconds: float
    wall_seconds: float | None
    down_seconds: float
    tokens_per_second: float | None
    checkpoints: int
    checkpoint_bytes: int


class Energy(BaseModel):
    """price: per kWh, in the currency it was given in; cost likewise."""

    joules: float
    kilowatt_hours: float
    mean_watts: float | None
    joules_per_million_tokens: float | None
    price: float | None
    cost: float | None


class Report(BaseModel):
    id: str
    name: str
    title: str | None
    generated_at: float
    standing: RunProgress
    shape: PlannedShape
    parameters: Parameters
    batch: BatchPlan
    hyperparameters: Hyperparameters
    schedule: ScheduleSpec
    data: dict[str, Any]
    hardware: Hardware
    phases: list[PhaseReport]
    attempts: list[AttemptReport]
    totals: Totals
    energy: Energy | None
    exact_resume: str | None
    verdicts: list[ResumeVerdict]
    evaluations: list[EvaluationReport]
    differences: list[EvaluationDifference]
    samples: list[SampleReport]
    incidents: list[Incident]
    timeline: list[Moment]
    curves: list[Series]
    curve_bin_steps: int = 1
