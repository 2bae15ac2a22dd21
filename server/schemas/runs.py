"""Runs: in a list, in detail, and what requests may change about them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, StringConstraints

from server.schemas.states import Desired, State
from trainer.contract.extend import ExtendPreview, Joint
from trainer.contract.plan import Plan
from trainer.contract.reasons import Reason
from trainer.contract.spec import (
    MAX_RANKS,
    MAX_REWINDS,
    AttentionBackend,
    BudgetSpec,
    Gpus,
    Hours,
    MetadataKey,
    MetadataValue,
    Name,
    PlaceSpec,
    Priority,
    RankDevice,
    RunSpec,
    Strict,
    Url,
)


class Condition(BaseModel):
    """Condition of a run that is running but takes no steps at the moment."""

    code: Literal["disk_full", "silent"]
    """Stable code of the condition."""
    message: str
    since: float | None
    """Time of the last step, in unix seconds."""


class RunSummary(BaseModel):
    """A run in a list. loss is that of one step; runs are compared by loss_smooth."""

    id: str
    name: str
    title: str | None
    state: State
    desired_state: Desired
    reason: Reason
    reason_message: str
    device: str
    """Device that was asked for; auto until one is chosen."""
    step: int
    end_step: int
    fraction: float
    loss: float | None
    loss_smooth: float | None = None
    val_bpb: float | None
    tokens_per_second: float | None
    eta_seconds: float | None
    training_seconds: float | None = None
    condition: Condition | None = None
    parameters: int | None = None
    tokens_seen: int = 0
    queue_position: int | None
    """Place in the queue of its device, lowest first; null when not queued."""
    num_phases: int
    """Number of phases."""
    created_at: float
    started_at: float | None
    ended_at: float | None
    last_step_at: float | None
    state_since: float | None = None
    """Time since when the run is in this state, in unix seconds."""
    metadata: dict[str, str]
    sparkline: list[float | None] = []
    """About 32 means of the loss over the lineage, in nats per token."""


class Remedy(BaseModel):
    """Resume request that follows the advice of a failed run."""

    label: str
    """What it does, as a button says it."""
    request: dict[str, Any]
    """Body of the resume request."""


class RunDetail(RunSummary):
    """A run with its spec and plan."""

    advice: str
    remedy: Remedy | None = None
    """Resume request that follows the advice; null unless the run failed."""
    spec: RunSpec
    plan: Plan
    frozen: dict[str, Any]
    """Choices fixed at the run's first start (micro-batch, kernels, precision, threads)."""
    overrides: dict[str, Any]
    fingerprint: dict[str, Any] | None
    """What the bits of the weights depend on: versions, device, threads, choices."""
    exact_resume: Literal["verified", "approximate", "mismatch"] | None
    pending_extend: dict[str, Any] | None
    """Extend that is applied when the present phase ends."""
    directory: str
    """Absolute path of the run's directory on the daemon's machine."""


class PatchRun(Strict):
    """What may change about a run; null title, hours or budget remove them. Parts replace key by
    key, but a budget as a whole.

    name: a free one; links by id keep working, and the counters in Prometheus continue under it.
    """

    name: Name | None = None
    title: Annotated[str, StringConstraints(max_length=300)] | None = None
    metadata: Annotated[dict[MetadataKey, MetadataValue], Field(max_length=16)] | None = None
    evaluate: dict[str, Any] | None = None
    """Evaluation settings to change."""
    checkpoint: dict[str, Any] | None = None
    """Checkpoint settings to change."""
    recovery: dict[str, Any] | None = None
    notify: Annotated[list[Url], Field(max_length=16)] | None = None
    """Webhook or apprise URLs; secrets are masked in answers."""
    priority: Priority | None = None
    preemptible: bool | None = None
    """Whether the run makes way for higher priorities and other programs."""
    hours: Hours | None = None
    budget: BudgetSpec | None = None


class Overrides(Strict):
    device_batch_size: Annotated[int, Field(ge=1, le=65_536)] | None = None
    compile: bool | None = None
    """Whether to compile the model."""
    attention: AttentionBackend | None = None
    """Attention backend."""
    gpus: Gpus | None = None
    """Another number of GPUs from now on, or all; instead of the spec's gpus and devices."""
    devices: Annotated[list[RankDevice], Field(min_length=1, max_length=MAX_RANKS)] | None = None
    """Other devices from now on; instead of the spec's gpus and devices."""


class ResumeRecovery(Strict):
    on_non_finite: Literal["stop", "rewind"] | None = None
    """What to do after a loss that is not finite; rewind trains on past the batch."""
    max_rewinds: Annotated[int, Field(ge=1, le=MAX_REWINDS)] | None = None
    """Maximum number of rewinds in all, those already made included."""


class ResumeRequest(Strict):
    """recovery: what a failure's advice may ask to change, as PATCH would, before the resume."""

    overrides: Overrides | None = None
    recovery: ResumeRecovery | None = None
    place: PlaceSpec | None = None
    """Cluster to train on from now on; null is the daemon's own machine."""


class ExtendAnswer(BaseModel):
    """Result of an extend, or its preview with dry_run."""

    run: RunDetail
    """The run as it is now."""
    plan: ExtendPreview | None
    """Preview of the new phase; null when nothing changed."""
    joint: Joint | None
    discarded_steps: int
    warnings: list[str]
