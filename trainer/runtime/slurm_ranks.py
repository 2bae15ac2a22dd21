"""Ranks started by srun: sets torchrun's environment variables from Slurm's.

Rank 0 chooses a free port and writes its address into the attempt's directory, which every node
sees: no port is fixed in advance, and nothing depends on how a site names its nodes.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path

from trainer.contract import durable, units
from trainer.runtime import early_signals

MEETING = "meeting.json"
MEET_SECONDS = 600.0  # nodes start one after another, and import torch from a shared disk
POLL_SECONDS = 0.2


class NotMet(Exception):
    """Rank 0 of this job did not start in time."""


def is_task() -> bool:
    """True if srun started this process directly, without torchrun."""
    return "SLURM_PROCID" in os.environ and "RANK" not in os.environ


def join_tasks(attempt: Path) -> None:
    """Set RANK, WORLD_SIZE and rank 0's address in the environment. Raises NotMet, OSError."""
    own = os.environ
    size, rank = int(own["SLURM_NTASKS"]), int(own["SLURM_PROCID"])
    nodes = int(own.get("SLURM_NNODES", "1"))
    job = own.get("SLURM_JOB_ID", "")
    place = _invite(attempt, job, nodes) if rank == 0 else _find(attempt, job)
    own.update(
        RANK=str(rank),
        WORLD_SIZE=str(size),
        LOCAL_RANK=own.get("SLURM_LOCALID", "0"),
        LOCAL_WORLD_SIZE=str(size // nodes),
        MASTER_ADDR=str(place["address"]),
        MASTER_PORT=str(place["port"]),
    )


def _invite(attempt: Path, job: str, nodes: int) -> dict[str, str | int]:
    address = "127.0.0.1" if nodes == 1 else socket.gethostname()
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    place: dict[str, str | int] = {"job": job, "address": address, "port": port}
    durable.write_atomically(attempt / MEETING, json.dumps(place).encode())
    return place


def _find(attempt: Path, job: str) -> dict[str, str | int]:
    deadline = time.monotonic() + MEET_SECONDS
    while time.monotonic() < deadline:
        if early_signals.has_received():
            sys.exit(128 + signal.SIGTERM)  # nothing to record yet
        with suppress(OSError, ValueError):
            os.listdir(attempt)  # makes a network file system refresh its listing
            place = json.loads((attempt / MEETING).read_text())
            if place["job"] == job:
                return place
        time.sleep(POLL_SECONDS)
    raise NotMet(
        f"rank 0 of job {job} left no address in {attempt} within {units.duration(MEET_SECONDS)}"
    )
