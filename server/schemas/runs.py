"""Runs: list and detail, and the bodies of requests that change a run."""

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
    """Condition of an active run that makes no steps at the moment."""

    code: Literal["disk_full", "silent"]
    """`disk_full`: it waits for disk space, to start or to continue. `silent`: its trainer reports
    no step."""
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
    """Requested device; auto until one is chosen."""
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
    """Position in the queue of its device, lowest first; null if not queued."""
    num_phases: int
    """Number of phases."""
    created_at: float
    started_at: float | None
    ended_at: float | None
    last_step_at: float | None
    state_since: float | None = None
    """Time at which the run entered this state, in unix seconds."""
    metadata: dict[str, str]
    sparkline: list[float | None] = []
    """About 32 bin means of the loss over the lineage, in nats per token, for a sparkline."""


class Remedy(BaseModel):
    """Resume request that follows the advice of a failed run."""

    label: str
    """What it does, as a button says it."""
    request: dict[str, Any]
    """Body of the resume request."""


class RunDetail(RunSummary):
    """A run with its spec and plan."""

    metrics: dict[str, float | None] = {}
    """Newest value of each metric, by key, in the units of GET /v1/catalog."""
    advice: str
    remedy: Remedy | None = None
    """Resume request that follows the advice; null unless the run failed."""
    spec: RunSpec
    plan: Plan
    frozen: dict[str, Any]
    """Choices fixed at the run's first start (micro-batch, kernels, precision, threads)."""
    overrides: dict[str, Any]
    fingerprint: dict[str, Any] | None
    """Fingerprint: everything the bits of the weights depend on (versions, device, threads,
    choices)."""
    exact_resume: Literal["verified", "approximate", "mismatch"] | None
    pending_extend: dict[str, Any] | None
    """Extend that is applied when the current phase ends."""
    directory: str
    """Absolute path of the run's directory on the daemon's machine."""


class PatchRun(Strict):
    """Body of PATCH /v1/runs/{id}. A null title, hours or budget removes it. Objects are merged key
    by key; a budget is replaced as a whole.

    name: any unused name. Links by id keep working; Prometheus counters continue under the new
    name.
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
    """Webhook or apprise URLs; responses mask their secrets."""
    priority: Priority | None = None
    preemptible: bool | None = None
    """Whether the run yields its device to higher priorities and other programs."""
    hours: Hours | None = None
    budget: BudgetSpec | None = None


class Overrides(Strict):
    device_batch_size: Annotated[int, Field(ge=1, le=65_536)] | None = None
    compile: bool | None = None
    """Whether to compile the model."""
    attention: AttentionBackend | None = None
    """Attention backend."""
    gpus: Gpus | None = None
    """Number of GPUs from now on, or all; replaces the spec's gpus and devices."""
    devices: Annotated[list[RankDevice], Field(min_length=1, max_length=MAX_RANKS)] | None = None
    """Devices from now on; replaces the spec's gpus and devices."""


class ResumeRecovery(Strict):
    on_non_finite: Literal["stop", "rewind"] | None = None
    """On a NaN or infinite loss: stop, or rewind to a checkpoint and skip the batches."""
    max_rewinds: Annotated[int, Field(ge=1, le=MAX_REWINDS)] | None = None
    """Maximum number of rewinds in total, including those already made."""


class ResumeRequest(Strict):
    """Body of POST …/resume. recovery: settings to change first, as by PATCH, where a failure's
    advice suggests it."""

    overrides: Overrides | None = None
    recovery: ResumeRecovery | None = None
    place: PlaceSpec | None = None
    """Cluster to train on from now on; null is the daemon's machine."""


class ExtendAnswer(BaseModel):
    """Result of an extend, or its preview with dry_run."""

    run: RunDetail
    """The run as it is now."""
    plan: ExtendPreview | None
    """Preview of the new phase; null when nothing changed."""
    joint: Joint | None
    discarded_steps: int
    warnings: list[str]
