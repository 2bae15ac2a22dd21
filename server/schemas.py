"""Response models of the API.

Every number carries its unit in its name: seconds, bytes, tokens, watts, joules; times are unix
seconds. NaN and infinity never occur: a value that is not finite is null.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from trainer.contract.extend import ExtendPreview, Joint
from trainer.contract.plan import Plan
from trainer.contract.reasons import Reason
from trainer.contract.schedule import PhaseSchedule
from trainer.contract.spec import (
    MAX_RANKS,
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
    ShortText,
    Strict,
    Url,
)

T = TypeVar("T")
# step, unix seconds, mean, min, max
SeriesPoint = tuple[int, float, float | None, float | None, float | None]


class State(StrEnum):
    created = "created"
    queued = "queued"
    preparing = "preparing"
    starting = "starting"
    running = "running"
    recovering = "recovering"
    pausing = "pausing"
    paused = "paused"
    cancelling = "cancelling"
    cancelled = "cancelled"
    completed = "completed"
    failed = "failed"


class Desired(StrEnum):
    created = "created"
    running = "running"
    paused = "paused"
    cancelled = "cancelled"


class Page(BaseModel, Generic[T]):
    """One page of a list; `next` goes into `after` of the following request."""

    data: list[T]
    has_more: bool
    next: str | None


class ErrorItem(BaseModel):
    pointer: str
    detail: str


class Problem(BaseModel):
    """RFC 9457 (application/problem+json). `type` is stable; `detail` is for people."""

    model_config = ConfigDict(extra="allow")

    type: str
    title: str
    status: int
    detail: str
    errors: list[ErrorItem] = []
    hint: str | None = None
    state: State | None = None
    legal: list[str] | None = None


class Condition(BaseModel):
    """Why a running run does not step just now. since: unix seconds of its last step."""

    code: Literal["disk_full", "silent"]
    message: str
    since: float | None


class RunSummary(BaseModel):
    """A run in a list. sparkline: about 32 means of the loss over the lineage.

    loss is that of one step; runs are compared by loss_smooth. training_seconds: spent in steps so
    far, repeats included. condition: null for a run that steps.
    """

    id: str
    name: str
    title: str | None
    state: State
    desired_state: Desired
    reason: Reason
    reason_message: str
    device: str
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
    num_phases: int
    created_at: float
    started_at: float | None
    ended_at: float | None
    last_step_at: float | None
    state_since: float | None = None
    metadata: dict[str, str]
    sparkline: list[float | None] = []


class RunDetail(RunSummary):
    """A run with its spec and plan. advice: what to do about the reason."""

    advice: str
    spec: RunSpec
    plan: Plan
    frozen: dict[str, Any]
    overrides: dict[str, Any]
    fingerprint: dict[str, Any] | None
    exact_resume: Literal["verified", "approximate", "mismatch"] | None
    pending_extend: dict[str, Any] | None
    directory: str


class PeakFlops(BaseModel):
    value: float
    source: str


class Vram(BaseModel):
    allocated: int | None = None
    reserved: int | None = None
    peak: int | None = None
    total: int | None = None


class EtaParts(BaseModel):
    training: float
    evaluation: float
    saving: float


class CheckpointBrief(BaseModel):
    name: str
    step: int
    bytes: int
    created_at: float


class RankView(BaseModel):
    """GET /v1/runs/{id}/ranks: one process of a run on several devices, as reported last.

    compute_seconds: its own forward and backward passes of a step; waited_seconds: for the others.
    """

    rank: int
    host: str
    device: str
    pid: int
    compute_seconds: float | None = None
    waited_seconds: float | None = None
    vram_allocated_bytes: int | None = None
    vram_reserved_bytes: int | None = None
    vram_peak_bytes: int | None = None
    vram_total_bytes: int | None = None
    power_watts: float | None = None
    temperature_celsius: float | None = None
    seen_at: float


class Progress(BaseModel):
    """GET /v1/runs/{id}/progress.

    eta_source: which rate the ETA is taken from; the ETA is null for a run that has ended.
    devices: of the newest attempt. vram_bytes, power_watts: of all of them; ranks: of each.
    """

    id: str
    name: str
    state: State
    desired_state: Desired
    reason: Reason
    reason_message: str
    advice: str
    phase: str | None
    attempt: int | None
    stage: str | None
    stage_detail: str
    stage_fraction: float | None
    step: int
    end_step: int
    fraction: float
    tokens_seen: int
    loss: float | None
    loss_smooth: float | None
    lr_multiplier: float | None
    momentum: float | None
    weight_decay: float | None
    grad_norm: float | None
    tokens_per_second: float | None
    step_seconds: float | None
    mfu: float | None
    mfu_causal: float | None
    peak_flops: PeakFlops | None
    vram_bytes: Vram
    power_watts: float | None
    temperature_celsius: float | None
    energy_joules: float | None
    eta_seconds: float | None
    finish_at: float | None
    energy_left_joules: float | None = None
    cost_left: float | None = None
    eta_parts: EtaParts | None
    eta_source: str | None
    training_seconds: float | None = None
    started_at: float | None = None
    ended_at: float | None = None
    condition: Condition | None = None
    last_step_at: float | None
    last_checkpoint: CheckpointBrief | None
    val_bpb: float | None
    core: float | None
    more: dict[str, float | None] = {}
    exact_resume: Literal["verified", "approximate", "mismatch"] | None
    devices: list[str] = []
    ranks: list[RankView] = []


class PhaseView(BaseModel):
    """superseded: a rewind set it aside. lineage_end: where it ends in the present lineage."""

    index: int
    name: str
    start_step: int
    end_step: int
    ended_at_step: int | None
    mode: str
    schedule: PhaseSchedule
    tokens: int
    joint: Joint | None
    from_checkpoint: str | None
    created_at: float
    started_at: float | None
    ended_at: float | None
    imported: bool
    superseded: bool = False
    lineage_end: int


class AttemptView(BaseModel):
    number: int
    phase_index: int
    started_at: float | None
    ended_at: float | None
    pid: int | None
    device: str
    devices: list[str] = []
    stage: str
    start_step: int | None
    last_step: int | None
    lineage_limit: int | None
    steps_done: int
    steps_lost: int
    slurm_job: str | None = None
    outcome: str | None
    reason: Reason | None
    message: str
    log_tail: str | None
    versions: dict[str, Any]
    exact_resume: str | None
    report_gap: str | None


class CheckpointView(BaseModel):
    id: str
    name: str
    step: int
    attempt: int | None
    bytes: int
    manifest_sha256: str
    why: str
    pinned: bool
    newest: bool
    best: bool
    superseded: bool
    bad: str | None
    val_bpb: float | None
    next_loss: float | None
    save_seconds: float
    stall_seconds: float
    created_at: float
    files: list[str] = []


class EvaluationView(BaseModel):
    id: int
    kind: Literal["bpb", "core"]
    step: int
    value: float
    identity: str
    settings: dict[str, Any]
    result: dict[str, Any]
    seconds: float
    unix_seconds: float
    attempt: int | None
    job: str | None
    best: bool
    superseded: bool


class SampleView(BaseModel):
    id: int
    step: int
    prompt: str
    text: str
    settings: dict[str, Any]
    unix_seconds: float
    job: str | None
    superseded: bool


class EventView(BaseModel):
    id: int
    run: str | None
    job: str | None
    attempt: int | None
    kind: str
    level: Literal["info", "warning", "error"]
    step: int | None
    message: str
    data: dict[str, Any]
    unix_seconds: float


class Series(BaseModel):
    """points: [step, unix_seconds, mean, min, max]; step is the last one of its bin.

    identity: what evaluated values were measured under. Values of two identities are two series.
    """

    key: str
    identity: str | None = None
    points: list[SeriesPoint]


class Segment(BaseModel):
    phase: int
    attempt: int
    from_step: int
    to_step: int


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


class MetricsAnswer(BaseModel):
    series: list[Series]
    bin_steps: int
    raw_points: int
    segments: list[Segment]


class Column(BaseModel):
    """One key over the steps of the answer; min and max are those of each bin."""

    key: str
    mean: list[float | None]
    min: list[float | None] | None
    max: list[float | None] | None


class PlannedCurve(BaseModel):
    """The schedule at some steps, in the units of the history, six significant digits."""

    steps: list[int]
    lr_multiplier: list[float | None]
    momentum: list[float | None]
    weight_decay: list[float | None]


class MetricColumns(BaseModel):
    """GET …/metrics?columns=true: steps and times once, six significant digits.

    evaluations: what was measured at steps of its own, as series of points. planned: the schedule
    ahead of the present step, where it was asked for.
    """

    steps: list[int]
    unix_seconds: list[float]
    series: list[Column]
    evaluations: list[Series]
    bin_steps: int
    raw_points: int
    segments: list[Segment]
    planned: PlannedCurve | None = None


class JobView(BaseModel):
    id: str
    kind: str
    run: str | None
    where: str
    state: Literal["queued", "running", "completed", "failed", "cancelled"]
    reason: Reason | None
    message: str
    stage: str
    stage_detail: str
    fraction: float | None
    params: dict[str, Any]
    result: dict[str, Any] | None
    created_at: float
    started_at: float | None
    ended_at: float | None


class DeviceView(BaseModel):
    device: str
    name: str
    memory_bytes: int | None
    memory_used_bytes: int | None
    memory_by_owner: dict[str, int] = {}
    utilisation: float | None = None
    power_watts: float | None = None
    temperature_celsius: float | None = None
    peak_flops: PeakFlops | None
    run: str | None = None


class NeighbourRule(Strict):
    """Which other programs on a device a run makes way for."""

    least_bytes: Annotated[int, Field(ge=0, le=10**15)] = 512_000_000
    yield_to: Annotated[list[ShortText], Field(max_length=64)] = []  # noqa: RUF012
    ignore: Annotated[list[ShortText], Field(max_length=64)] = []  # noqa: RUF012


class PowerRule(Strict):
    """Power limit and temperature ceiling of a device; the first rule with open hours holds."""

    power_limit_watts: Annotated[float, Field(ge=1, le=10_000)] | None = None
    ceiling_celsius: Annotated[float, Field(ge=30, le=120)] | None = None
    hours: Hours | None = None


class PlacePolicyView(Strict):
    """What the owner of the machine says about a device: its hours, other programs on it, and its
    power and heat."""

    hours: Hours | None = None
    neighbours: NeighbourRule | None = None
    power: Annotated[list[PowerRule], Field(max_length=16)] | None = None


class PlacePolicyAnswer(PlacePolicyView):
    """A device's policy, and what keeps it from being followed."""

    problems: list[str] = []  # noqa: RUF012 - pydantic copies it


class QueuePlace(BaseModel):
    """A device, who holds it, and when it is open."""

    device: str
    name: str
    run: str | None
    job: str | None
    is_open: bool
    closes_at: float | None
    opens_at: float | None
    neighbour: str | None
    too_hot: str | None = None
    power_limit_watts: float | None = None
    problems: list[str] = []


class QueueEntry(BaseModel):
    """A run that waits for a device."""

    position: int
    run: str
    name: str
    priority: int
    devices: list[str]
    reason: Reason
    reason_message: str
    until: float | None


class QueueView(BaseModel):
    """Who runs where, who waits, for what and until when."""

    places: list[QueuePlace]
    waiting: list[QueueEntry]
    num_waiting: int
    next_change_at: float | None


class SystemView(BaseModel):
    """GET /v1/system."""

    version: str
    python: str
    versions: dict[str, str | None]
    sqlite: dict[str, str]
    devices: list[DeviceView]
    data_dir: str
    disk_total_bytes: int
    disk_free_bytes: int
    database_bytes: int
    backups: list[str]
    warnings: list[str]
    uptime_seconds: float
    auth: Literal["none", "token"]


# --- requests ------------------------------------------------------------------------------------


class PatchRun(Strict):
    """What may change about a run; null title, hours or budget remove them. Parts replace key by
    key, but a budget as a whole.

    name: a free one; links by id keep working, and the counters in Prometheus continue under it.
    """

    name: Name | None = None
    title: Annotated[str, StringConstraints(max_length=300)] | None = None
    metadata: Annotated[dict[MetadataKey, MetadataValue], Field(max_length=16)] | None = None
    evaluate: dict[str, Any] | None = None
    checkpoint: dict[str, Any] | None = None
    recovery: dict[str, Any] | None = None
    notify: Annotated[list[Url], Field(max_length=16)] | None = None
    priority: Priority | None = None
    preemptible: bool | None = None
    hours: Hours | None = None
    budget: BudgetSpec | None = None


class Overrides(Strict):
    device_batch_size: Annotated[int, Field(ge=1, le=65_536)] | None = None
    compile: bool | None = None
    attention: AttentionBackend | None = None
    gpus: Gpus | None = None
    """Another number of GPUs from now on, or all; instead of the spec's gpus and devices."""
    devices: Annotated[list[RankDevice], Field(min_length=1, max_length=MAX_RANKS)] | None = None
    """Other devices from now on; instead of the spec's gpus and devices."""


class ResumeRecovery(Strict):
    on_non_finite: Literal["stop", "rewind"]
    """What to do after a loss that is not finite; rewind trains on past the batch."""


class ResumeRequest(Strict):
    """recovery: what a failure's advice may ask to change, as PATCH would, before the resume.
    place: where the run trains from now on; null is the daemon's own machine."""

    overrides: Overrides | None = None
    recovery: ResumeRecovery | None = None
    place: PlaceSpec | None = None


class PatchCheckpoint(Strict):
    pinned: bool


class SaveRequest(Strict):
    pin: bool = False


class PlanRequest(BaseModel):
    """Either a spec, or {"run": id or name, "extend": {...}}. Validated by hand: the two differ."""

    model_config = ConfigDict(extra="allow")


class PlanOutlook(BaseModel):
    """When a run that started now would end under its hours and those of its device, with what
    energy and cost. energy_source: the run whose mean power was taken."""

    finish_at: float | None
    energy_joules: float | None
    cost: float | None
    energy_source: str | None


class PlanAnswer(BaseModel):
    """A spec's plan, or the preview of an extend."""

    spec: RunSpec | None = None
    plan: Plan | None = None
    planned: PlannedCurve | None = None
    outlook: PlanOutlook | None = None
    extend: ExtendPreview | None = None


class ExtendAnswer(BaseModel):
    """plan: the preview of the new phase (null when nothing changed)."""

    run: RunDetail
    plan: ExtendPreview | None
    joint: Joint | None
    discarded_steps: int
    warnings: list[str]
