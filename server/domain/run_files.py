"""`run.json`: the run's row in its directory, so that a rebuild can restore it.

Written by the daemon a moment after the rows change, so that `traind rebuild` and a restored
backup also give back runs that were only made or queued, their titles, phases and pins.
"""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel, ConfigDict
from sqlalchemy import select
from sqlalchemy.orm import Session

from server.database import tables
from server.domain import checkpoint_lookup
from trainer.contract.durable import write_durably
from trainer.contract.rundir import DataDir, RunDir

FILE = "run.json"
_PHASE = (
    "index", "name", "start_step", "end_step", "schedule", "ask", "preview", "from_checkpoint",
    "created_at", "started_at", "ended_at", "ended_at_step", "lineage_limit", "imported",
)  # fmt: skip


class GroupFile(BaseModel):
    """The group that made a run, and the run's own place in it."""

    model_config = ConfigDict(extra="ignore")

    id: str
    name: str
    title: str | None = None
    request: dict[str, Any]
    created_at: float
    index: int
    depth: int | None = None
    variant: dict[str, Any] = {}
    seed: int


class RunFile(BaseModel):
    """The rows of one run, as far as nothing else on the disk has them."""

    model_config = ConfigDict(extra="ignore")

    format: int = 1
    id: str
    name: str
    title: str | None = None
    metadata: dict[str, Any] = {}
    state: str
    desired_state: str
    reason: str
    reason_message: str = ""
    created_at: float
    started_at: float | None = None
    device: str = "auto"
    end_step: int
    spec: dict[str, Any]
    plan: dict[str, Any]
    overrides: dict[str, Any] = {}
    skip_steps: list[Any] = []
    phases: list[dict[str, Any]] = []
    pinned: list[str] = []
    queue_position: int | None = None
    group: GroupFile | None = None


def describe(session: Session, run: tables.Run) -> RunFile:
    """The document of a run's present rows."""
    phases = session.scalars(
        select(tables.Phase).where(tables.Phase.run_id == run.id).order_by(tables.Phase.index)
    )
    return RunFile(
        id=run.id,
        name=run.name,
        title=run.title,
        metadata=run.run_metadata,
        state=run.state,
        desired_state=run.desired_state,
        reason=run.reason,
        reason_message=run.reason_message,
        created_at=run.created_at,
        started_at=run.started_at,
        device=run.device,
        end_step=run.end_step,
        spec=run.spec,
        plan=run.plan,
        overrides=run.overrides,
        skip_steps=run.skip_steps,
        phases=[{key: getattr(phase, key) for key in _PHASE} for phase in phases],
        pinned=checkpoint_lookup.pinned_names(session, run.id, any_lineage=True),
        queue_position=run.queue_position,
        group=_group(session, run.id),
    )


def _group(session: Session, run_id: str) -> GroupFile | None:
    member = session.get(tables.GroupMember, run_id)
    if member is None:
        return None
    group = session.get_one(tables.Group, member.group_id)
    return GroupFile(
        id=group.id,
        name=group.name,
        title=group.title,
        request=group.request,
        created_at=group.created_at,
        index=member.index,
        depth=member.depth,
        variant=member.variant,
        seed=member.seed,
    )


def write(paths: DataDir, document: RunFile) -> None:
    """Write the document, and create the directory if it is missing. Raises OSError."""
    directory = paths.run(document.id).root
    directory.mkdir(parents=True, exist_ok=True)
    write_durably(directory / FILE, document.model_dump_json(indent=1).encode())


def read(directory: RunDir) -> RunFile | None:
    """Read the document; None if it is missing or unreadable."""
    try:
        return RunFile.model_validate(json.loads((directory.root / FILE).read_bytes()))
    except (OSError, ValueError):
        return None


def phase_rows(run_id: str, document: RunFile) -> list[tables.Phase]:
    """The phases of a document as rows of a run."""
    known = [{k: v for k, v in one.items() if k in _PHASE} for one in document.phases]
    return [tables.Phase(run_id=run_id, **one) for one in known]


def add_to_group(session: Session, run_id: str, document: RunFile) -> None:
    """Make the run a member of its group again; its first member brings the group back. A group
    whose name another one has taken meanwhile is left out."""
    known = document.group
    if known is None:
        return
    if session.get(tables.Group, known.id) is None:
        if session.scalar(select(tables.Group.id).where(tables.Group.name == known.name)):
            return
        group = known.model_dump(include={"id", "name", "title", "request", "created_at"})
        session.add(tables.Group(**group))
        session.flush()
    member = known.model_dump(include={"index", "depth", "variant", "seed"})
    session.add(tables.GroupMember(run_id=run_id, group_id=known.id, **member))
