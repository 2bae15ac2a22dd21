"""Renders the job of an attempt: sbatch's arguments, and the script that it runs on the first node.

Whatever comes from a spec becomes an argument or a quoted word of the script, never shell text.
"""

from __future__ import annotations

import hashlib
import os
import shlex
from pathlib import Path

from server.launch.launcher import LaunchRequest, Workspace
from trainer.contract.rundir import LOG
from trainer.contract.spec import PlaceSpec

SCRIPT = "job.sh"
WITHDRAWN = "withdrawn"
NAME_PREFIX = "traind-"

_TEMPLATE = """#!/bin/bash
# Written by traind for one attempt of a run; Slurm keeps a copy of its own.
[ -e {withdrawn} ] && exit 0          # the daemon gave this job up before it began
[ "${{SLURM_RESTART_COUNT:-0}}" = 0 ] || exit 0   # an attempt is never started twice
cd {directory} || exit 1
{modules}{prologue}exec srun --kill-on-bad-exit=1 --nodes={nodes} --ntasks={ranks} {cpus}\\
    {python} -P -m {module} {directory}
"""


def job_name(token: str) -> str:
    """Names the job without giving away the token: everybody on the cluster sees it."""
    return NAME_PREFIX + hashlib.sha256(token.encode()).hexdigest()[:24]


def arguments(work: LaunchRequest, place: PlaceSpec) -> list[str]:
    """The arguments of sbatch, ending with the script's path."""
    directory = work.workspace.directory
    on_each = work.ranks // place.nodes
    asked = {
        "job-name": job_name(work.workspace.token),
        "comment": f"traind {'/'.join(directory.parts[-3:])}",
        "chdir": str(directory),
        "output": _literal(directory / LOG),
        "open-mode": "append",
        "input": "/dev/null",
        "export": "ALL",
        "nodes": str(place.nodes),
        "ntasks": str(work.ranks),
        "ntasks-per-node": str(on_each),
        "partition": place.partition,
        "account": place.account,
        "qos": place.qos,
        "reservation": place.reservation,
        "constraint": place.constraint,
        "exclude": place.exclude,
        "time": place.time_limit,
        "gres": place.gres or (f"gpu:{on_each}" if work.uses_gpus else None),
        "cpus-per-task": None if place.cpus_per_task is None else str(place.cpus_per_task),
        "mem": place.memory,
        # to the tasks, not to the shell that waits for them
        "signal": f"TERM@{place.save_seconds}",
    }
    given = [f"--{name}={value}" for name, value in asked.items() if value is not None]
    return ["--parsable", "--no-requeue", *given, str(directory / SCRIPT)]


def render(work: LaunchRequest, place: PlaceSpec, python: str, prologue: Path | None) -> str:
    """The text of the script. prologue: a file of the site, sourced before the trainer starts."""
    directory = str(work.workspace.directory)
    modules = [shlex.join(["module", "load", name]) for name in place.modules]
    site = [f". {shlex.quote(str(prologue))} || exit 1"] if prologue is not None else []
    return _TEMPLATE.format(
        withdrawn=shlex.quote(os.path.join(directory, WITHDRAWN)),
        directory=shlex.quote(directory),
        modules="".join(f"{line} || exit 1\n" for line in modules),
        prologue="".join(f"{line}\n" for line in site),
        ranks=work.ranks,
        nodes=place.nodes,
        cpus=f"--cpus-per-task={place.cpus_per_task} " if place.cpus_per_task else "",
        python=shlex.quote(python),
        module=shlex.quote(work.module),
    )


def withdraw(workspace: Workspace) -> None:
    """Make a job of this directory that still starts exit immediately. Raises OSError."""
    (workspace.directory / WITHDRAWN).touch()


def _literal(path: Path) -> str:
    """sbatch fills in `%` patterns in names of files."""
    return str(path).replace("%", "%%")
