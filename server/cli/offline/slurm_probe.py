"""`traind doctor --slurm`: submits a short job that checks whether nodes share the data directory.

The job's program uses only the standard library, so that it reports even where the trainer's
interpreter cannot start.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.contract import units

MOST_SKEW_SECONDS = 30.0
POLL_SECONDS = 0.2
COMMAND_SECONDS = 60.0

PROGRAM = """
import errno, fcntl, json, os, socket, sys, time

folder = sys.argv[1]
found = {"host": socket.gethostname(), "python": sys.argv[2]}
with open(os.path.join(folder, "lock"), "r+") as lock:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        found["flock"] = "not seen"
    except OSError as error:
        seen = error.errno in (errno.EAGAIN, errno.EACCES)
        found["flock"] = "seen" if seen else os.strerror(error.errno)
found["trainer"] = os.system(
    "%s -P -c 'import trainer' >/dev/null 2>&1" % json.dumps(sys.argv[2])
) == 0
path = os.path.join(folder, "answer.json")
with open(path + ".new", "w") as file:
    found["time"] = time.time()
    json.dump(found, file)
    file.flush()
    os.fsync(file.fileno())
os.rename(path + ".new", path)
"""


class ProbeFailed(Exception):
    """The probe job did not answer; the message has the cause."""


@dataclass(frozen=True)
class ProbeAnswer:
    """Findings of a node. flock: "seen" if a lock held here excludes a process there, "not seen",
    or the error. skew_seconds: an upper bound, which includes the delay of the answer."""

    host: str
    flock: str
    has_trainer: bool
    skew_seconds: float
    seconds: float


def probe(root: Path, python: str, partition: str | None, seconds: float) -> ProbeAnswer:
    """Submit the job and wait for its answer. Raises ProbeFailed."""
    began = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix=".probe-", dir=root))
    job = None
    try:
        (folder / "probe.py").write_text(PROGRAM)
        with open(folder / "lock", "w+") as lock:
            with suppress(OSError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            job = _submit(folder, python, partition)
            answer, seen_at = _wait(folder, job, began + seconds)
        return ProbeAnswer(
            host=str(answer["host"]),
            flock=str(answer["flock"]),
            has_trainer=bool(answer["trainer"]),
            skew_seconds=abs(seen_at - float(answer["time"])),
            seconds=time.monotonic() - began,
        )
    finally:
        if job is not None:
            _run("scancel", job)
        shutil.rmtree(folder, ignore_errors=True)


def _submit(folder: Path, python: str, partition: str | None) -> str:
    script = folder / "job.sh"
    script.write_text('#!/bin/sh\nexec python3 "$1/probe.py" "$1" "$2"\n')
    where = [f"--partition={partition}"] if partition else []
    done = _run(
        "sbatch", "--parsable", "--no-requeue", "--ntasks=1", "--job-name=traind-doctor",
        f"--chdir={folder}", f"--output={str(folder / 'log').replace('%', '%%')}", *where,
        str(script), str(folder), python,
    )  # fmt: skip
    job = done.stdout.strip().splitlines()[-1].partition(";")[0] if done.stdout.strip() else ""
    if done.returncode or not job.isdigit():
        raise ProbeFailed(f"sbatch: {' '.join(done.stderr.split()) or 'it printed no number'}")
    return job


def _wait(folder: Path, job: str, deadline: float) -> tuple[dict[str, Any], float]:
    while time.monotonic() < deadline:
        os.listdir(folder)  # makes a network file system refresh its cache
        with suppress(OSError, ValueError):
            answer = json.loads((folder / "answer.json").read_text())
            return answer, time.time()
        time.sleep(POLL_SECONDS)
    state = _run("squeue", "--noheader", "--states=all", f"--jobs={job}", "--format=%T %r")
    log = ""
    with suppress(OSError):
        log = " ".join((folder / "log").read_text()[-500:].split())
    said = " ".join(state.stdout.split()) or "no longer listed"
    raise ProbeFailed(f"job {job} wrote nothing into {folder} ({said}) {log}".rstrip())


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=COMMAND_SECONDS, check=False,
        )  # fmt: skip
    except FileNotFoundError:
        words = f"{command[0]} is not on this machine: run it where jobs are submitted"
        raise ProbeFailed(words) from None
    except subprocess.TimeoutExpired:
        raise ProbeFailed(
            f"{command[0]} did not answer within {units.duration(COMMAND_SECONDS)}"
        ) from None
