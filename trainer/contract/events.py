"""Events from trainer to server: one record per outbox line.

Kinds that begin or end something are durable before the trainer continues (`DURABLE`); step
records reach the disk at least once a second. Units: seconds, bytes, tokens, watts, joules.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from trainer.contract.evaluations import EvaluationKind
from trainer.contract.ranks import RankRow
from trainer.contract.reasons import Reason


class TrainerEvent(BaseModel):
    """Base of all events. Unknown fields are ignored: the daemon may be older than the trainer."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class Started(TrainerEvent):
    """The process has started and holds its lock. fingerprint: what bit equality depends on."""

    kind: Literal["started"] = "started"
    pid: int
    boot_id: str
    start_ticks: int
    device: str
    device_name: str
    versions: dict[str, str]
    fingerprint: dict[str, Any]
    peak_flops: float | None = None
    peak_source: str | None = None


class Stage(TrainerEvent):
    """Activity of the trainer outside steps; the stall timeout depends on it."""

    kind: Literal["stage"] = "stage"
    stage: Literal[
        "loading", "verifying", "probing", "compiling", "training", "evaluating", "saving",
        "preparing", "downloading", "tokenizing", "sampling", "serving", "waiting",
    ]  # fmt: skip
    fraction: float | None = None
    detail: str = ""


class Resumed(TrainerEvent):
    """Training resumes at `step`. Supersedes what earlier attempts reported beyond it."""

    kind: Literal["resumed"] = "resumed"
    step: int
    checkpoint: str | None
    skipped: list[str] = []
    tokens_seen: int
    approximate: str | None = None


class Probed(BaseModel):
    """Batch size probe: `steps` real steps with `rows` rows per pass. peak_bytes: GPU memory."""

    model_config = ConfigDict(extra="forbid")

    rows: int
    steps: int
    tokens_per_second: float
    peak_bytes: int | None


class Frozen(TrainerEvent):
    """The choices of this attempt (rows, kernels), autotuned or probed at the run's first start."""

    kind: Literal["frozen"] = "frozen"
    choices: dict[str, Any]
    probed: list[Probed] = []


class Step(TrainerEvent):
    """An optimizer step is done. step: counted from 0, so that `step + 1` steps are done and a
    checkpoint written now is at `step + 1`. loss: mean over its micro-batches, before its update.

    energy_joules: used by this step alone; the server adds them up. more: metrics of the registry
    (`metrics.py`) that have no field here, by key.
    """

    kind: Literal["step"] = "step"
    step: int
    loss: float | None
    loss_smooth: float | None
    lr_multiplier: float
    momentum: float
    weight_decay: float
    grad_norm: float | None = None
    tokens: int
    seconds: float
    vram_allocated_bytes: int | None = None
    vram_reserved_bytes: int | None = None
    vram_peak_bytes: int | None = None
    vram_total_bytes: int | None = None
    power_watts: float | None = None
    temperature_celsius: float | None = None
    energy_joules: float | None = None
    batch_sha256: str | None = None
    more: dict[str, float | None] = {}

    def value(self, key: str) -> float | None:
        """Value of a metric of the registry at this step."""
        return getattr(self, key) if key in Step.model_fields else self.more.get(key)


class Ranks(TrainerEvent):
    """Rows of all ranks of an attempt on several devices, in rank order; every 30 s."""

    kind: Literal["ranks"] = "ranks"
    step: int
    ranks: list[RankRow]


class EvaluationResult(TrainerEvent):
    """An evaluation. identity: what the value depends on; never compare across identities."""

    kind: Literal["evaluation"] = "evaluation"
    evaluation: EvaluationKind
    step: int
    value: float
    identity: str
    settings: dict[str, Any]
    result: dict[str, Any]
    seconds: float
    checkpoint: str | None = None


class SampleResult(TrainerEvent):
    kind: Literal["sample"] = "sample"
    step: int
    prompt: str
    text: str
    temperature: float = 0.0
    top_k: int | None = None
    seed: int | None = None
    seconds: float = 0.0


class CheckpointSaved(TrainerEvent):
    """A checkpoint was saved; emitted only when it is durable under its final name."""

    kind: Literal["checkpoint_saved"] = "checkpoint_saved"
    step: int
    name: str
    bytes: int
    manifest_sha256: str
    seconds: float
    stall_seconds: float
    why: Literal["cadence", "requested", "warmdown", "pause", "terminate", "end", "import"]
    pinned: bool = False
    val_bpb: float | None = None
    next_loss: float | None = None


class CheckpointFailed(TrainerEvent):
    kind: Literal["checkpoint_failed"] = "checkpoint_failed"
    step: int
    message: str
    errno: int | None = None


class CheckpointRemoved(TrainerEvent):
    kind: Literal["checkpoint_removed"] = "checkpoint_removed"
    name: str


class CheckpointBad(TrainerEvent):
    """A checkpoint failed verification and was skipped."""

    kind: Literal["checkpoint_bad"] = "checkpoint_bad"
    name: str
    why: str


class ResumeChecked(TrainerEvent):
    """Result of the exact-resume check: next_loss against the first loss after it, bit for bit."""

    kind: Literal["resume_checked"] = "resume_checked"
    step: int
    what: Literal["next_loss", "val_bpb", "fingerprint"]
    verdict: Literal["verified", "approximate", "mismatch"]
    expected: float | None = None
    found: float | None = None
    why: str = ""


class Notice(TrainerEvent):
    """A message for people: loss spike, disk full, NaN, rewind, hardware."""

    kind: Literal["notice"] = "notice"
    level: Literal["info", "warning", "error"]
    code: str
    message: str
    step: int | None = None
    data: dict[str, Any] = {}


class CommandDone(TrainerEvent):
    kind: Literal["command_done"] = "command_done"
    command_id: str
    outcome: Literal["done", "refused", "failed"]
    message: str = ""


class Ended(TrainerEvent):
    """The last record of an attempt or job that ended in an orderly way. See exits.ExitRecord."""

    kind: Literal["ended"] = "ended"
    outcome: Literal["completed", "phase_ended", "paused", "cancelled", "terminated", "failed"]
    reason: Reason
    step: int | None = None
    checkpoint: str | None = None
    message: str = ""
    result: dict[str, Any] = {}


AnyEvent = Annotated[
    Started
    | Stage
    | Resumed
    | Frozen
    | Step
    | Ranks
    | EvaluationResult
    | SampleResult
    | CheckpointSaved
    | CheckpointFailed
    | CheckpointRemoved
    | CheckpointBad
    | ResumeChecked
    | Notice
    | CommandDone
    | Ended,
    Field(discriminator="kind"),
]
ADAPTER: TypeAdapter[AnyEvent] = TypeAdapter(AnyEvent)

# Everything except steps, ranks and stages reaches the disk before the trainer continues.
NOT_DURABLE = frozenset({"step", "stage", "ranks"})


def is_durable(event: TrainerEvent) -> bool:
    """True if an event must be durable before the trainer continues."""
    return getattr(event, "kind", "") not in NOT_DURABLE
