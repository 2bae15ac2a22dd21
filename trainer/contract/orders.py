"""Orders: what the server writes to `order.json` before it starts a process.

The process needs nothing else: no database, no daemon, no environment beyond paths and device.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict

from trainer.contract.durable import write_once
from trainer.contract.plan import Plan
from trainer.contract.schedule import PhaseSchedule
from trainer.contract.spec import RunSpec

ORDER = "order.json"


class Order(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Lineage(Order):
    """Lineage: checkpoints the present state descends from, {attempt: highest step that counts}.

    A checkpoint of attempt a at step s belongs to it iff a is a key and s <= limits[a]. A scan of
    the directory with this rule also finds one that was committed but never reported.
    """

    limits: dict[int, int]

    def holds(self, attempt: int, step: int) -> bool:
        """True if the checkpoint of `attempt` at `step` is in the lineage."""
        return step <= self.limits.get(attempt, -1)


class AttemptOrder(Order):
    """One trainer process serving one phase.

    earlier_schedules: those of the lineage's earlier phases, in order; needed if the newest
    checkpoint that verifies is from before this phase, whose steps are then repeated.
    devices: one per rank of a run on several; `device` is then the first.
    """

    run_id: str
    run_name: str
    attempt: int
    token: str
    run_dir: str
    data_dir: str
    device: str
    phase_index: int
    phase_name: str
    schedule: PhaseSchedule
    earlier_schedules: list[PhaseSchedule] = []
    first_step_of_phase: int
    end_step: int
    spec: RunSpec
    plan: Plan
    lineage: Lineage
    max_step: int | None = None
    from_checkpoint: str | None = None
    pinned: list[str] = []
    overrides: dict[str, Any] = {}
    skip_steps: list[tuple[int, int]] = []
    recheck_bpb: bool = False
    resume_expected: bool = False
    devices: list[str] = []

    @property
    def num_ranks(self) -> int:
        return max(1, len(self.devices))

    def device_of(self, rank: int) -> str:
        return self.devices[rank] if self.devices else self.device


class JobOrder(Order):
    """One job: bounded work other than training. The job's own module validates `params`."""

    job_id: str
    job: Literal["prepare", "import", "export", "evaluate", "sample", "serve", "audit"]
    token: str
    data_dir: str
    run_id: str | None = None
    run_dir: str | None = None
    device: str = "cpu"
    params: dict[str, Any] = {}


AnyOrder = TypeVar("AnyOrder", AttemptOrder, JobOrder)


def write(directory: Path, order: AttemptOrder | JobOrder) -> None:
    """Write the order of a process durably, once: a second order never replaces the first.

    Its directories are stored relative to `directory`, so that the data directory can be moved.
    Raises FileExistsError, OSError.
    """
    where = {
        name: _relative(value, directory, order.data_dir)
        for name in ("run_dir", "data_dir")
        if (value := getattr(order, name)) is not None
    }
    stored = order.model_copy(update=where)
    write_once(directory / ORDER, stored.model_dump_json(indent=1).encode())


def read(directory: Path, kind: type[AnyOrder]) -> AnyOrder:
    """The order in `directory` with its directories absolute. Raises OSError, ValidationError."""
    order = kind.model_validate_json((directory / ORDER).read_bytes())
    where = {
        name: os.path.normpath(os.path.join(directory.absolute(), value))
        for name in ("run_dir", "data_dir")
        if (value := getattr(order, name)) is not None
    }
    return order.model_copy(update=where)


def _relative(path: str, directory: Path, data_dir: str) -> str:
    """The path relative to `directory`, by names alone, without resolving links."""
    inside = os.path.commonpath([os.path.abspath(directory), data_dir]) == data_dir
    return os.path.relpath(path, directory) if inside else path
