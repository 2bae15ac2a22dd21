"""Database tables: one typed class per table. Times are unix seconds (UTC), sizes bytes.

`superseded` marks records of an earlier attempt beyond the step at which a later one starts: kept,
listed on request, never part of the current lineage.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    JSON,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    String,
    Text,
    UniqueConstraint,
)
from sqlalchemy.ext.associationproxy import AssociationProxy, association_proxy
from sqlalchemy.orm import DeclarativeBase, Mapped, declared_attr, mapped_column, relationship


class Base(DeclarativeBase):
    type_annotation_map = {dict[str, Any]: JSON, list[Any]: JSON}  # noqa: RUF012 - SQLAlchemy's hook


class Meta(Base):
    """Metadata of the database: `written_by` is the traind version that last migrated it."""

    __tablename__ = "meta"

    key: Mapped[str] = mapped_column(String(32), primary_key=True)
    value: Mapped[str] = mapped_column(Text)


class Run(Base):
    """A run: the training of one model. `step` counts the steps done in the current lineage.

    progress: summary of the last step record. sparkline: {"size": steps per bin, "bins": [[count,
    sum], ...]} of the loss. Ingestion writes both. queue_rank (minus the priority) and hours (JSON,
    '' for always) repeat the spec for the index of the queue. The wide columns come last, so that
    a list of runs does not read them.
    """

    __tablename__ = "runs"
    __table_args__ = (
        Index("ix_runs_created_at", "created_at", "id"),
        Index("ix_runs_state_created_at", "state", "created_at", "id"),
        Index("ix_runs_queue_position", "queue_position"),
        Index("ix_runs_queue", "device", "hours", "queue_rank", "queue_position"),
    )

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    name: Mapped[str] = mapped_column(String(64), unique=True)
    title: Mapped[str | None] = mapped_column(Text)
    run_metadata: Mapped[dict[str, Any]] = mapped_column("metadata", JSON, default=dict)
    state: Mapped[str] = mapped_column(String(16))
    desired_state: Mapped[str] = mapped_column(String(16))
    reason: Mapped[str] = mapped_column(String(32))
    reason_message: Mapped[str] = mapped_column(Text, default="")
    state_since: Mapped[float] = mapped_column(Float)
    created_at: Mapped[float] = mapped_column(Float)
    started_at: Mapped[float | None] = mapped_column(Float)
    ended_at: Mapped[float | None] = mapped_column(Float)
    queue_position: Mapped[int | None] = mapped_column(Integer)
    queue_rank: Mapped[int] = mapped_column(Integer, default=0, server_default="0")
    hours: Mapped[str] = mapped_column(Text, default="", server_default="")
    device: Mapped[str] = mapped_column(String(32), default="auto")
    step: Mapped[int] = mapped_column(Integer, default=0)
    end_step: Mapped[int] = mapped_column(Integer)
    tokens_seen: Mapped[int] = mapped_column(Integer, default=0)
    last_step_at: Mapped[float | None] = mapped_column(Float)
    progress: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    exact_resume: Mapped[str | None] = mapped_column(String(16))
    failures_without_progress: Mapped[int] = mapped_column(Integer, default=0)
    best_failed_step: Mapped[int] = mapped_column(Integer, default=-1)
    rewinds: Mapped[int] = mapped_column(Integer, default=0)
    not_before: Mapped[float | None] = mapped_column(Float)
    version: Mapped[int] = mapped_column(Integer, default=1)
    batch_tokens: Mapped[int] = mapped_column(Integer)
    totals: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    sparkline: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    spec: Mapped[dict[str, Any]] = mapped_column(JSON)
    plan: Mapped[dict[str, Any]] = mapped_column(JSON)
    frozen: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    overrides: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    fingerprint: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    pending_extend: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    skip_steps: Mapped[list[Any]] = mapped_column(JSON, default=list)

    phases: Mapped[list[Phase]] = relationship(
        lazy="raise", order_by="Phase.index", cascade="all, delete-orphan"
    )


class Phase(Base):
    """A phase: the planned steps [start_step, end_step). Its plan never changes; it ends once.

    lineage_limit: the step up to which it still counts (None: all of it); a rewind lowers it, and
    a phase whose limit is not beyond its start is superseded. ask: the extend that created it.
    """

    __tablename__ = "phases"
    __table_args__ = (UniqueConstraint("run_id", "index"),)

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"), index=True)
    index: Mapped[int] = mapped_column(Integer)
    name: Mapped[str] = mapped_column(String(64))
    start_step: Mapped[int] = mapped_column(Integer)
    end_step: Mapped[int] = mapped_column(Integer)
    schedule: Mapped[dict[str, Any]] = mapped_column(JSON)
    ask: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    preview: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    from_checkpoint: Mapped[str | None] = mapped_column(String(128))
    created_at: Mapped[float] = mapped_column(Float)
    started_at: Mapped[float | None] = mapped_column(Float)
    ended_at: Mapped[float | None] = mapped_column(Float)
    ended_at_step: Mapped[int | None] = mapped_column(Integer)
    lineage_limit: Mapped[int | None] = mapped_column(Integer)
    imported: Mapped[bool] = mapped_column(default=False)


class Execution(Base):
    """An execution: one supervised process or process group, from its order to its ending.

    kind: `attempt` or `job`, which refer to it. directory: relative to the data directory.
    launcher: name of its launcher. place: the device of its order. handle: the launcher's reference
    to it. token: identifies its processes and journals. state: queued, running, ended. outcome,
    reason: how it ended and why. message: the same as a sentence. `domain.executions` writes them.
    exit_code: negative for a signal, None if unknown. stage_since: when the stage began.
    outbox_*: the ingest cursor, committed with the rows it produced. escalation: the step reached.
    """

    __tablename__ = "executions"
    __table_args__ = (Index("ix_executions_state", "state"),)

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    kind: Mapped[str] = mapped_column(String(8))
    directory: Mapped[str] = mapped_column(String(128), unique=True)
    launcher: Mapped[str] = mapped_column(String(16), default="local")
    place: Mapped[str] = mapped_column(String(32))
    token: Mapped[str] = mapped_column(String(64))
    handle: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    state: Mapped[str] = mapped_column(String(8), default="queued")
    outcome: Mapped[str | None] = mapped_column(String(16))
    reason: Mapped[str | None] = mapped_column(String(32))
    message: Mapped[str] = mapped_column(Text, default="")
    exit_code: Mapped[int | None] = mapped_column(Integer)
    log_tail: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[float] = mapped_column(Float)
    started_at: Mapped[float | None] = mapped_column(Float)
    ended_at: Mapped[float | None] = mapped_column(Float)
    stage: Mapped[str] = mapped_column(String(16), default="starting")
    stage_since: Mapped[float | None] = mapped_column(Float)
    stage_detail: Mapped[str] = mapped_column(Text, default="")
    stage_fraction: Mapped[float | None] = mapped_column(Float)
    escalation: Mapped[int] = mapped_column(Integer, default=0)
    outbox_seq: Mapped[int] = mapped_column(Integer, default=0)
    outbox_offset: Mapped[int] = mapped_column(Integer, default=0)
    outbox_inode: Mapped[int | None] = mapped_column(Integer)
    outbox_problem: Mapped[str | None] = mapped_column(Text)

    @property
    def is_over(self) -> bool:
        return self.state == "ended"

    @property
    def pid(self) -> int | None:
        """Process id on this machine; None before the start, or for a process elsewhere."""
        return self.handle.get("pid")


class OfExecution:
    """Mixin of attempts and jobs: the columns of their execution as attributes."""

    execution_id: Mapped[int] = mapped_column(
        ForeignKey("executions.id", ondelete="CASCADE"), index=True, unique=True
    )

    @declared_attr
    def execution(cls) -> Mapped[Execution]:
        return relationship(Execution, lazy="joined")

    directory: AssociationProxy[str] = association_proxy("execution", "directory")
    token: AssociationProxy[str] = association_proxy("execution", "token")
    handle: AssociationProxy[dict[str, Any]] = association_proxy("execution", "handle")
    reason: AssociationProxy[str | None] = association_proxy("execution", "reason")
    message: AssociationProxy[str] = association_proxy("execution", "message")
    exit_code: AssociationProxy[int | None] = association_proxy("execution", "exit_code")
    log_tail: AssociationProxy[str | None] = association_proxy("execution", "log_tail")
    created_at: AssociationProxy[float] = association_proxy("execution", "created_at")
    started_at: AssociationProxy[float | None] = association_proxy("execution", "started_at")
    ended_at: AssociationProxy[float | None] = association_proxy("execution", "ended_at")
    stage: AssociationProxy[str] = association_proxy("execution", "stage")
    stage_since: AssociationProxy[float | None] = association_proxy("execution", "stage_since")
    stage_detail: AssociationProxy[str] = association_proxy("execution", "stage_detail")
    stage_fraction: AssociationProxy[float | None] = association_proxy(
        "execution", "stage_fraction"
    )
    outbox_problem: AssociationProxy[str | None] = association_proxy("execution", "outbox_problem")

    @property
    def pid(self) -> int | None:
        return self.execution.pid

    @property
    def is_over(self) -> bool:
        return self.execution.is_over


class Attempt(OfExecution, Base):
    """An attempt: one trainer executes a phase. `number` is its fencing token within the run.

    device: as reported by the trainer; before that, as ordered. lineage_limit, in steps done:
    points below it and checkpoints up to it still count (None: all). Number 0 is an import.
    """

    __tablename__ = "attempts"
    __table_args__ = (UniqueConstraint("run_id", "number"),)

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"), index=True)
    number: Mapped[int] = mapped_column(Integer)
    phase_index: Mapped[int] = mapped_column(Integer)
    device: Mapped[str] = mapped_column(String(32))
    device_name: Mapped[str | None] = mapped_column(String(128))
    peak_flops: Mapped[float | None] = mapped_column(Float)
    peak_source: Mapped[str | None] = mapped_column(Text)
    versions: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    fingerprint: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    start_step: Mapped[int | None] = mapped_column(Integer)
    last_step: Mapped[int | None] = mapped_column(Integer)
    lineage_limit: Mapped[int | None] = mapped_column(Integer)
    steps_done: Mapped[int] = mapped_column(Integer, default=0)
    steps_lost: Mapped[int] = mapped_column(Integer, default=0)
    exact_resume: Mapped[str | None] = mapped_column(String(16))

    outcome: AssociationProxy[str | None] = association_proxy("execution", "outcome")


class Point(Base):
    """The metrics of one step of one attempt. step counts from 0; the loss precedes the update."""

    __tablename__ = "points"

    attempt_id: Mapped[int] = mapped_column(
        ForeignKey("attempts.id", ondelete="CASCADE"), primary_key=True
    )
    step: Mapped[int] = mapped_column(Integer, primary_key=True)
    unix_seconds: Mapped[float] = mapped_column(Float)
    loss: Mapped[float | None] = mapped_column(Float)
    loss_smooth: Mapped[float | None] = mapped_column(Float)
    lr_multiplier: Mapped[float | None] = mapped_column(Float)
    momentum: Mapped[float | None] = mapped_column(Float)
    weight_decay: Mapped[float | None] = mapped_column(Float)
    grad_norm: Mapped[float | None] = mapped_column(Float)
    step_seconds: Mapped[float | None] = mapped_column(Float)
    tokens_per_second: Mapped[float | None] = mapped_column(Float)
    mfu: Mapped[float | None] = mapped_column(Float)
    vram_reserved_bytes: Mapped[int | None] = mapped_column(Integer)
    power_watts: Mapped[float | None] = mapped_column(Float)
    temperature_celsius: Mapped[float | None] = mapped_column(Float)
    more: Mapped[dict[str, Any] | None] = mapped_column(JSON)  # metrics without a column, by key

    __mapper_args__ = {"primary_key": ["attempt_id", "step"]}  # noqa: RUF012
    __table_args__ = {"sqlite_with_rowid": False}  # noqa: RUF012


class Rollup(Base):
    """Points of one attempt binned over `[bin * size, (bin + 1) * size)`, size a power of four.

    Updated in the ingest transaction. values: see server.metrics.rollups.
    """

    __tablename__ = "rollups"

    attempt_id: Mapped[int] = mapped_column(
        ForeignKey("attempts.id", ondelete="CASCADE"), primary_key=True
    )
    size: Mapped[int] = mapped_column(Integer, primary_key=True)
    bin: Mapped[int] = mapped_column(Integer, primary_key=True)
    first_step: Mapped[int] = mapped_column(Integer)
    last_step: Mapped[int] = mapped_column(Integer)
    unix_seconds: Mapped[float] = mapped_column(Float)
    values: Mapped[bytes] = mapped_column(LargeBinary)

    __table_args__ = {"sqlite_with_rowid": False}  # noqa: RUF012


class Checkpoint(Base):
    __tablename__ = "checkpoints"
    __table_args__ = (
        UniqueConstraint("run_id", "name"),
        Index("ix_checkpoints_run_step", "run_id", "step"),
    )

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"))
    attempt_id: Mapped[int | None] = mapped_column(
        ForeignKey("attempts.id", ondelete="SET NULL"), index=True
    )
    name: Mapped[str] = mapped_column(String(64))
    step: Mapped[int] = mapped_column(Integer)
    bytes: Mapped[int] = mapped_column(Integer)
    manifest_sha256: Mapped[str] = mapped_column(String(64))
    why: Mapped[str] = mapped_column(String(16))
    pinned: Mapped[bool] = mapped_column(default=False)
    val_bpb: Mapped[float | None] = mapped_column(Float)
    next_loss: Mapped[float | None] = mapped_column(Float)
    save_seconds: Mapped[float] = mapped_column(Float, default=0.0)
    stall_seconds: Mapped[float] = mapped_column(Float, default=0.0)
    created_at: Mapped[float] = mapped_column(Float)
    deleted_at: Mapped[float | None] = mapped_column(Float)
    bad: Mapped[str | None] = mapped_column(Text)
    superseded: Mapped[bool] = mapped_column(default=False)


class Evaluation(Base):
    __tablename__ = "evaluations"
    __table_args__ = (Index("ix_evaluations_run_step", "run_id", "step"),)

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"))
    attempt_id: Mapped[int | None] = mapped_column(
        ForeignKey("attempts.id", ondelete="SET NULL"), index=True
    )
    job_id: Mapped[str | None] = mapped_column(String(40))
    kind: Mapped[str] = mapped_column(String(8))
    step: Mapped[int] = mapped_column(Integer)
    value: Mapped[float] = mapped_column(Float)
    identity: Mapped[str] = mapped_column(String(64))
    settings: Mapped[dict[str, Any]] = mapped_column(JSON)
    result: Mapped[dict[str, Any]] = mapped_column(JSON)
    seconds: Mapped[float] = mapped_column(Float)
    unix_seconds: Mapped[float] = mapped_column(Float)
    superseded: Mapped[bool] = mapped_column(default=False)


class Sample(Base):
    __tablename__ = "samples"
    __table_args__ = (Index("ix_samples_run_step", "run_id", "step"),)

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"))
    attempt_id: Mapped[int | None] = mapped_column(
        ForeignKey("attempts.id", ondelete="SET NULL"), index=True
    )
    job_id: Mapped[str | None] = mapped_column(String(40))
    step: Mapped[int] = mapped_column(Integer)
    prompt: Mapped[str] = mapped_column(Text)
    text: Mapped[str] = mapped_column(Text)
    settings: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    unix_seconds: Mapped[float] = mapped_column(Float)
    superseded: Mapped[bool] = mapped_column(default=False)


class Event(Base):
    """An event of a run or job: `id` is the persisted sequence that SSE's Last-Event-ID names."""

    __tablename__ = "events"
    __table_args__ = (
        Index("ix_events_run_id", "run_id", "id"),
        {"sqlite_autoincrement": True},
    )

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    run_id: Mapped[str | None] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"))
    job_id: Mapped[str | None] = mapped_column(String(40))
    attempt_number: Mapped[int | None] = mapped_column(Integer)
    kind: Mapped[str] = mapped_column(String(32))
    level: Mapped[str] = mapped_column(String(8), default="info")
    step: Mapped[int | None] = mapped_column(Integer)
    message: Mapped[str] = mapped_column(Text)
    data: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    unix_seconds: Mapped[float] = mapped_column(Float)


class Job(OfExecution, Base):
    """A job: bounded work other than training.

    where: `cpu`, `device`, or `inline`: done by the trainer of its run, so that its execution has
    neither process nor journal.
    """

    __tablename__ = "jobs"

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    run_id: Mapped[str | None] = mapped_column(
        ForeignKey("runs.id", ondelete="CASCADE"), index=True
    )
    kind: Mapped[str] = mapped_column(String(16))
    where: Mapped[str] = mapped_column(String(8), default="cpu")
    params: Mapped[dict[str, Any]] = mapped_column(JSON)
    result: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    cancel_requested: Mapped[bool] = mapped_column(default=False)

    @property
    def state(self) -> str:
        """State of the job: queued, running, completed, failed or cancelled."""
        return self.execution.outcome or "failed" if self.is_over else self.execution.state


class CommandRow(Base):
    """A command to a trainer: written by a verb, delivered by the supervisor."""

    __tablename__ = "commands"

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"), index=True)
    job_id: Mapped[str | None] = mapped_column(String(40))
    body: Mapped[dict[str, Any]] = mapped_column(JSON)
    created_at: Mapped[float] = mapped_column(Float)
    delivered_at: Mapped[float | None] = mapped_column(Float)
    done_at: Mapped[float | None] = mapped_column(Float)
    outcome: Mapped[str | None] = mapped_column(String(8))


class IdempotencyKey(Base):
    """The stored answer to a POST, returned to a retry; committed together with the effect."""

    __tablename__ = "idempotency_keys"

    key: Mapped[str] = mapped_column(String(255), primary_key=True)
    request_sha256: Mapped[str] = mapped_column(String(64))
    status: Mapped[int] = mapped_column(Integer)
    headers: Mapped[dict[str, Any]] = mapped_column(JSON)
    body: Mapped[str] = mapped_column(Text)
    created_at: Mapped[float] = mapped_column(Float, index=True)


class Throughput(Base):
    """Measured speed and memory of a shape on a device: the source of the plan's ETA."""

    __tablename__ = "throughput"

    device: Mapped[str] = mapped_column(String(128), primary_key=True)
    shape_key: Mapped[str] = mapped_column(String(128), primary_key=True)
    rows: Mapped[int] = mapped_column(Integer, primary_key=True)
    tokens_per_second: Mapped[float] = mapped_column(Float)
    peak_bytes: Mapped[int | None] = mapped_column(Integer)
    steps: Mapped[int] = mapped_column(Integer)
    run_name: Mapped[str] = mapped_column(String(64))


class Counter(Base):
    """Monotonic Prometheus totals that outlive the rows they count; see server.metrics.counters."""

    __tablename__ = "counters"

    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    run: Mapped[str] = mapped_column(String(64), primary_key=True)
    label: Mapped[str] = mapped_column(String(64), primary_key=True, default="")
    value: Mapped[float] = mapped_column(Float, default=0.0)


class PlacePolicy(Base):
    """Policy of a device. hours: JSON, '' for always. neighbours: the other programs that a run
    yields to, null for none. power: rules of power and heat; the first open one applies.
    """

    __tablename__ = "place_policies"

    place: Mapped[str] = mapped_column(String(32), primary_key=True)
    hours: Mapped[str] = mapped_column(Text, default="")
    neighbours: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    power: Mapped[list[Any] | None] = mapped_column(JSON(none_as_null=True))


class PowerLimit(Base):
    """A power limit set by this daemon, kept until the previous limit is restored."""

    __tablename__ = "power_limits"

    place: Mapped[str] = mapped_column(String(32), primary_key=True)
    uuid: Mapped[str] = mapped_column(String(64))
    watts_before: Mapped[float] = mapped_column(Float)
    watts: Mapped[float] = mapped_column(Float)


class Group(Base):
    """A group: runs of one base spec and its variations. request: the body of its POST."""

    __tablename__ = "groups"
    __table_args__ = (Index("ix_groups_created_at", "created_at", "id"),)

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    name: Mapped[str] = mapped_column(String(64), unique=True)
    title: Mapped[str | None] = mapped_column(Text)
    request: Mapped[dict[str, Any]] = mapped_column(JSON)
    created_at: Mapped[float] = mapped_column(Float)


class GroupMember(Base):
    """A run of a group and its variation. variant: values of the grid by dotted field."""

    __tablename__ = "group_members"

    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True)
    group_id: Mapped[str] = mapped_column(ForeignKey("groups.id", ondelete="CASCADE"), index=True)
    index: Mapped[int] = mapped_column(Integer)
    depth: Mapped[int | None] = mapped_column(Integer)
    variant: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    seed: Mapped[int] = mapped_column(Integer)
