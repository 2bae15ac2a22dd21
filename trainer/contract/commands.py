"""Commands from server to trainer or job: one record per inbox line, read once per step."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter


class Command(BaseModel):
    """id: assigned by the server; events.CommandDone answers the command of a job."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    id: str


class Pause(Command):
    """Checkpoint at the next step boundary, then end with outcome 'paused'."""

    kind: Literal["pause"] = "pause"


class Cancel(Command):
    """End at the next step boundary with outcome 'cancelled'; nothing further is saved."""

    kind: Literal["cancel"] = "cancel"


class EndPhase(Command):
    """Checkpoint at the next step boundary and end with 'phase_ended': an extend `at: now`."""

    kind: Literal["end_phase"] = "end_phase"


class Save(Command):
    """Write a checkpoint at the next step boundary and continue."""

    kind: Literal["save"] = "save"
    pin: bool = False


class Evaluate(Command):
    """Evaluate at the next step boundary and continue."""

    kind: Literal["evaluate"] = "evaluate"
    bpb: bool = False
    core: bool = False
    core_max_per_task: int | None = None


class Pin(Command):
    """The current pins: names of checkpoints that retention must not remove."""

    kind: Literal["pin"] = "pin"
    names: list[str]


class Update(Command):
    """New cadences and policies: the parts of the spec that may change while the run trains."""

    kind: Literal["update"] = "update"
    evaluate: dict[str, Any] | None = None
    checkpoint: dict[str, Any] | None = None
    recovery: dict[str, Any] | None = None


AnyCommand = Annotated[
    Pause | Cancel | EndPhase | Save | Evaluate | Pin | Update, Field(discriminator="kind")
]
ADAPTER: TypeAdapter[AnyCommand] = TypeAdapter(AnyCommand)
