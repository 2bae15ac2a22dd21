"""Startup checks: detects a copied data directory and a restored database."""

from __future__ import annotations

import json
import logging
from contextlib import suppress
from pathlib import Path
from typing import Any

from sqlalchemy import select

from server.database import provenance
from server.database.db import Database
from server.database.provenance import Provenance
from server.database.tables import Job, Run
from server.domain import events
from server.domain.states import Desired, State, can_move, explain, move
from server.errors import StorageBroken
from server.events import webhooks
from server.ingestion.catch_up import catch_up
from server.ingestion.disk import Found
from trainer.contract.durable import write_durably
from trainer.contract.reasons import Reason
from trainer.contract.rundir import DataDir

log = logging.getLogger("traind")


def arrive(db: Database, paths: DataDir) -> None:
    """Hold the runs of a copied directory, and add the rows that a restored database lacks."""
    came = provenance.inspect(db, paths)
    if came.copied_from is not None:
        _refuse_hard_links(paths, came.copied_from)
        _hold_back(db, came.copied_from)
    if came.from_host is not None:
        _report_other_machine(db, came.from_host)
    if came.moved_from is not None:
        log.info("the data directory was moved here from %s", came.moved_from)
    before = came.copied_from or came.moved_from or _place_of_orders(paths)
    if before is not None and before != str(paths.root):
        _rename_root(db, paths, before)
    found = catch_up(db, paths)
    for problem in found.problems:
        log.warning("not restored from the disk: %s", problem)
    if came.is_restored or found.attempts or found.runs:
        _begin_timeline(db, paths, came, found)
    provenance.record(db, paths)


def _report_other_machine(db: Database, host: str) -> None:
    """Warn of another machine; runs continue, because a replaced machine keeps its disk."""
    message = (
        f"this data directory was last opened on another machine ({host}): if it is a copy and "
        "the original is still served there, both train the same runs"
    )
    with db.write() as session:
        events.record(session, "moved", message, level="warning")
    log.warning(message)


def _refuse_hard_links(paths: DataDir, original: str) -> None:
    """Raises StorageBroken for a copy of hard links (`cp -al`): a write would change both."""
    if paths.database.stat().st_nlink > 1:
        raise StorageBroken(
            f"{paths.root} is a copy of {original} made of hard links: both are the same files.",
            hint="Copy it again without hard links (cp -a, rsync -a), then start again.",
        )


def _hold_back(db: Database, original: str) -> None:
    """Hold the runs of a copy: the original may be training them, so none starts by itself."""
    words = f"this data directory is a copy of {original}, which may still train this run"
    with db.write() as session:
        for run in session.scalars(select(Run).where(Run.state.in_(_WAITING))):
            if can_move(State(run.state), State.pausing):
                move(session, run, State.pausing, Reason.copied, words)
            explain(run, Reason.copied, words)
            run.desired_state = Desired.paused
        message = f"this data directory is a copy of {original}: its runs stay paused until resumed"
        events.record(session, "copied", message, level="warning")
    log.warning(message)


_WAITING = (
    State.queued, State.preparing, State.starting, State.running, State.recovering, State.pausing,
)  # fmt: skip


# --- moved directory -----------------------------------------------------------------------------


def _place_of_orders(paths: DataDir) -> str | None:
    """The data directory recorded in an order of traind 0.1, which has no data-directory.json."""
    if provenance.read(paths) is not None:
        return None
    for path in (paths.root / "runs").glob("run_*/attempts/*/order.json"):
        with suppress(OSError, ValueError, KeyError, TypeError):
            place = json.loads(path.read_bytes())["data_dir"]
            return place if Path(place).is_absolute() else None
    return None


def _rename_root(db: Database, paths: DataDir, before: str) -> None:
    """Update paths in rows (a bundle, a tokenizer, an export) from the old place to this one."""
    with db.write() as session:
        for run in session.scalars(select(Run)):
            spec = _renamed(run.spec, before, str(paths.root))
            if spec != run.spec:
                run.spec, run.version = spec, run.version + 1
                _rewrite_spec(paths, run)
        for job in session.scalars(select(Job)):
            job.params = _renamed(job.params, before, str(paths.root))
            job.result = _renamed(job.result, before, str(paths.root))


def _rewrite_spec(paths: DataDir, run: Run) -> None:
    path = paths.run(run.id).spec
    with suppress(OSError):
        if path.exists():
            write_durably(path, json.dumps(run.spec, indent=1).encode())


def _renamed(value: Any, before: str, after: str) -> Any:
    if isinstance(value, str):
        if value == before or value.startswith(f"{before}/"):
            return after + value.removeprefix(before)
        return value
    if isinstance(value, list):
        return [_renamed(one, before, after) for one in value]
    if isinstance(value, dict):
        return {key: _renamed(one, before, after) for key, one in value.items()}
    return value


def _begin_timeline(db: Database, paths: DataDir, came: Provenance, found: Found) -> None:
    last = provenance.new_timeline(db, paths)
    webhooks.begin_after(paths.root, last)
    words = "the database is older than the data directory (a backup was restored)"
    if found.attempts or found.runs:
        words += f": {found.attempts} attempts and {len(found.runs)} runs were read from the disk"
    with db.write() as session:
        events.record(session, "restored", words, level="warning")
    log.warning(words)
