"""Model names of completions: which checkpoint a name refers to.

`RUN` is the run's newest checkpoint, `RUN@best` the one of the lowest val bpb, `RUN@12000` the one
at that step, and `RUN@step-000012000-a0001` that one exactly.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from sqlalchemy.orm import Session

from server.database import tables
from server.domain import checkpoint_lookup
from server.errors import NotFound
from server.queries import run_views

MAX_LISTED = 1000
MODEL_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}(@[A-Za-z0-9._-]{1,64})?$"
_STEP = re.compile(r"[0-9]{1,10}\Z")


@dataclass(frozen=True)
class Model:
    """A checkpoint that can generate completions."""

    run_id: str
    run: str
    checkpoint: str
    step: int
    created_at: float

    @property
    def id(self) -> str:
        return f"{self.run}@{self.step}"


def find(session: Session, name: str) -> Model:
    """The model of a name. Raises NotFound with the available names."""
    run_name, _, at = name.partition("@")
    run = run_views.get_run(session, run_name)
    usable = checkpoint_lookup.of_any_lineage(session, run.id)
    found = _at(usable, at)
    if found is None:
        raise NotFound(_absent(run, at), hint=_hint(run, usable))
    return _model(run, found)


def _at(usable: list[tables.Checkpoint], at: str) -> tables.Checkpoint | None:
    """at: nothing for the newest, `best`, a step, or a name."""
    if at == "":
        return usable[0] if usable else None
    if at == "best":
        return checkpoint_lookup.best(usable)
    if _STEP.match(at):
        return checkpoint_lookup.first(usable, step=int(at))
    return checkpoint_lookup.first(usable, name=at)


def index(session: Session) -> list[Model]:
    """Available checkpoints as models, newest first, at most MAX_LISTED."""
    found = [_model(run, one) for one, run in checkpoint_lookup.of_all_runs(session, MAX_LISTED)]
    return list({model.id: model for model in reversed(found)}.values())[::-1]


def _model(run: tables.Run, one: tables.Checkpoint) -> Model:
    return Model(run.id, run.name, one.name, one.step, one.created_at)


def _absent(run: tables.Run, at: str) -> str:
    if at == "best":
        return f"No checkpoint of run {run.name} has a val bpb."
    wanted = f"at step {int(at):,}" if _STEP.match(at) else at
    return f"Run {run.name} has no usable checkpoint {wanted}".rstrip() + "."


def _hint(run: tables.Run, usable: list[tables.Checkpoint]) -> str:
    if not usable:
        return "POST …/checkpoints saves one while the run is training."
    names = ", ".join(f"{run.name}@{one.step}" for one in usable[:5])
    return f"The newest are {names}; GET /v1/models lists all."
