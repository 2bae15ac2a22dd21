"""Runs Slurm's commands, each with a timeout. They block while the controller does not respond, so
only the poller's thread calls them."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from server.launch.slurm.answers import (
    SACCT_FIELDS,
    SQUEUE_FIELDS,
    JobRow,
    one_line,
    parse_sacct,
    parse_squeue,
)
from trainer.contract import units

POLL_SECONDS = 30.0
SUBMIT_SECONDS = 90.0
NEEDED = ("sbatch", "squeue", "scancel")


class SlurmError(Exception):
    """A Slurm command failed or timed out; the message is its output in one line."""


def missing_programs() -> list[str]:
    """Slurm commands that are not on the PATH."""
    return [name for name in NEEDED if shutil.which(name) is None]


def squeue(names: Sequence[str]) -> list[JobRow]:
    """Jobs of this user with one of these names, including ended ones that the controller still
    lists. Raises SlurmError."""
    fields = ",".join(f"{field}:|" for field in SQUEUE_FIELDS)
    said = run(
        "squeue", "--noheader", "--states=all", f"--user={os.getuid()}",
        f"--name={','.join(names)}", f"--Format={fields}",
    )  # fmt: skip
    return parse_squeue(said)


def sacct(job: str) -> JobRow | None:
    """Accounting record of a job; None without accounting or without that job."""
    try:
        said = run(
            "sacct", "--noheader", "--parsable2", "--allocations", f"--jobs={job}",
            f"--format={','.join(SACCT_FIELDS)}",
        )  # fmt: skip
    except SlurmError:
        return None
    return next((row for row in parse_sacct(said) if row.job == job), None)


def sbatch(arguments: Sequence[str], environment: Mapping[str, str], directory: Path) -> str:
    """Run sbatch and return its output. Raises SlurmError."""
    return run(
        "sbatch", *arguments, seconds=SUBMIT_SECONDS, environment=environment, directory=directory
    )


def scancel(*arguments: str) -> None:
    """Run scancel. Raises SlurmError."""
    run("scancel", *arguments)


def run(
    *command: str,
    seconds: float = POLL_SECONDS,
    environment: Mapping[str, str] | None = None,
    directory: Path | None = None,
) -> str:
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=seconds, check=False,
            env=None if environment is None else dict(environment), cwd=directory,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise SlurmError(f"{command[0]} timed out after {units.duration(seconds)}") from None
    except OSError as error:
        raise SlurmError(f"{command[0]} cannot be run: {error.strerror}") from error
    if done.returncode:
        said = one_line(done.stderr.decode("utf-8", "replace"))
        raise SlurmError(said or f"{command[0]} exited with status {done.returncode}")
    return done.stdout.decode("utf-8", "replace")
