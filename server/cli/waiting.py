"""Waits for a run or a job to reach a state, across restarts of the daemon."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from server.cli import output
from trainer.contract import units
from trainer.contract.text import clean

if TYPE_CHECKING:
    from server.client import Client
    from server.schemas.jobs import JobView
    from server.schemas.progress import Progress

T = TypeVar("T")

SETTLED_STATES = frozenset({"completed", "failed", "cancelled", "paused", "created"})
JOB_ENDED = frozenset({"completed", "failed", "cancelled"})
POLL_SECONDS = 0.3
AWAY_SECONDS = 60.0  # how long the daemon may not answer before waiting ends


def outcome(state: str) -> int:
    """The exit status for the state in which a run settled."""
    codes = {"completed": output.OK, "failed": output.FAILED, "cancelled": output.CANCELLED}
    return codes.get(state, output.WAITING)


def for_run(
    traind: Client,
    run: str,
    reached: Callable[[Progress], bool],
    *,
    timeout_seconds: float | None = None,
    each: Callable[[Progress], None] | None = None,
    every_seconds: float = POLL_SECONDS,
) -> Progress:
    """Wait for the first progress that `reached` accepts. Raises Refused after the timeout."""
    started = time.monotonic()
    while True:
        now = retrying(lambda: traind.progress(run))
        if each:
            each(now)
        if reached(now):
            return now
        if timeout_seconds is not None and time.monotonic() - started > timeout_seconds:
            raise output.CommandRefused(
                f"{clean(run)} is still {now.state} after {units.duration(timeout_seconds)}"
            )
        time.sleep(every_seconds)


def for_job(traind: Client, job: JobView) -> JobView:
    """Wait until the job has ended, and show its progress on stderr."""
    console = output.stderr()
    try:
        with console.status("…") as status:
            while job.state not in JOB_ENDED:
                status.update(output.styled(describe(job)))
                time.sleep(POLL_SECONDS)
                name = job.id
                job = retrying(lambda name=name: traind.job(name))
    except KeyboardInterrupt:
        output.note(f"the job continues: traind job {clean(job.id)}")
        raise
    return job


def finish(job: JobView, show: Callable[[JobView], None], json: bool) -> None:
    """Print a job's outcome; exit 1 when it did not complete."""
    if json:
        output.emit(job)
    elif job.state == "completed":
        show(job)
    elif job.state not in JOB_ENDED:
        output.say(f"{job.id} is {job.state}; see: traind job {job.id}")
    if job.state in ("failed", "cancelled"):
        raise output.CommandRefused(f"the {job.kind} job {job.id} {job.state}: {job.message}")


def retrying(ask: Callable[[], T]) -> T:
    """Call `ask()`; retry for AWAY_SECONDS while the daemon does not answer."""
    from server.client import NotReachable

    deadline = time.monotonic() + AWAY_SECONDS
    while True:
        try:
            return ask()
        except NotReachable:
            if time.monotonic() > deadline:
                raise
            time.sleep(1.0)


def describe(job: JobView) -> str:
    """A job on one line: 'evaluate: sampling 40 % (hellaswag)'."""
    if job.state == "queued":
        return clean(f"{job.kind}: waiting ({job.message or job.where})")
    parts = [f"{job.kind}: {job.stage or job.state}"]
    if job.fraction is not None:
        parts.append(units.percent(job.fraction))
    if job.stage_detail:
        parts.append(f"({job.stage_detail})")
    return clean(" ".join(parts))
