"""Renders the Slurm job of an attempt: sbatch arguments, and the script run on the first node.

Values from a spec become arguments or quoted words of the script, never shell code.
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
# Written by traind for one attempt of a run; Slurm keeps its own copy.
[ -e {withdrawn} ] && exit 0          # the daemon withdrew this job
[ "${{SLURM_RESTART_COUNT:-0}}" = 0 ] || exit 0   # an attempt starts only once
cd {directory} || exit 1
{modules}{prologue}exec srun --kill-on-bad-exit=1 --nodes={nodes} --ntasks={ranks} {cpus}\\
    {python} -P -m {module} {directory}
"""


def job_name(token: str) -> str:
    """Job name: a hash of the token, since all users of the cluster see job names."""
    return NAME_PREFIX + hashlib.sha256(token.encode()).hexdigest()[:24]


def arguments(work: LaunchRequest, place: PlaceSpec) -> list[str]:
    """Arguments of sbatch, ending with the path of the script."""
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
    """Render the job script. prologue: shell file sourced before the trainer starts."""
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
    """Make a job of this workspace that starts later exit immediately. Raises OSError."""
    (workspace.directory / WITHDRAWN).touch()


def _literal(path: Path) -> str:
    """Escape `%`, which starts a pattern in sbatch's file names."""
    return str(path).replace("%", "%%")
