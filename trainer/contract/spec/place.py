"""Place of a run that trains on another machine: a partition of a Slurm cluster."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, StringConstraints, field_validator

from trainer.contract.spec.fields import Strict

MAX_NODES = 64
# Values that are passed to sbatch as arguments; none can begin with a dash and become an option.
SlurmName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.@+:,-]{0,127}$")]
SlurmRule = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z0-9_\[(][A-Za-z0-9_.,:=@+&|*()\[\]-]{0,255}$")
]
ModuleName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.+/-]{0,127}$")]
SlurmTime = Annotated[
    str, StringConstraints(pattern=r"^(\d{1,3}-)?\d{1,4}(:[0-5]\d){0,2}$", max_length=20)
]
NodeMemory = Annotated[str, StringConstraints(pattern=r"^\d{1,9}[KMGT]?$")]


class PlaceSpec(Strict):
    """A Slurm job of one task for each device, on `nodes` nodes; null leaves what the site sets."""

    engine: Literal["slurm"]
    """Launcher of the trainer: Slurm, by sbatch on the daemon's machine."""
    nodes: Annotated[int, Field(ge=1, le=MAX_NODES)] = 1
    """Number of nodes; the devices of the run are shared equally among them."""
    partition: SlurmName | None = None
    """Partition, or several separated by commas."""
    account: SlurmName | None = None
    """Account that the time is charged to."""
    qos: SlurmName | None = None
    """Quality of service."""
    reservation: SlurmName | None = None
    """Reservation whose nodes are used."""
    constraint: SlurmRule | None = None
    """Features that the nodes must have, as sbatch's --constraint."""
    exclude: SlurmRule | None = None
    """Nodes that are not used."""
    time_limit: SlurmTime | None = None
    """Time limit of each job, as Slurm writes it: minutes, H:M:S or D-H:M:S."""
    save_seconds: Annotated[int, Field(ge=10, le=7200)] = 180
    """Seconds before the time limit at which the trainer receives the signal to save and end."""
    gres: SlurmRule | None = None
    """Generic resources of a node; null requests as many GPUs as the run has on it."""
    cpus_per_task: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Number of CPU cores for each process."""
    memory: NodeMemory | None = None
    """Memory of a node, such as 64G; 0 is all of it."""
    modules: Annotated[list[ModuleName], Field(max_length=32)] = []  # noqa: RUF012
    """Environment modules that are loaded before the trainer starts."""

    @field_validator("time_limit")
    @classmethod
    def _leaves_time(cls, text: str | None) -> str | None:
        if text is not None and limit_seconds(text) == 0:
            raise ValueError("must be longer than 0; leave it out for the partition's own limit")
        return text


def limit_seconds(text: str) -> int:
    """Seconds of a time limit: `minutes`, `minutes:seconds`, `H:M:S`, `D-H`, `D-H:M`, `D-H:M:S`."""
    days, _, rest = text.rpartition("-")
    parts = [int(part) for part in re.split(":", rest)]
    if days:
        hours, minutes, seconds = [*parts, 0, 0][:3]
    elif len(parts) == 3:
        hours, minutes, seconds = parts
    else:
        hours, minutes, seconds = 0, parts[0], parts[1] if len(parts) > 1 else 0
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds
