"""Run deletion: a directory is marked before its rows are deleted, removed afterwards, and swept at
the next start.

Only a marked directory without a row is ever removed. One without a mark is never touched: a
database restored from an older backup knows fewer runs than the disk holds, and loses none of them.
"""

from __future__ import annotations

import logging
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from server.database import tables
from server.database.db import Database
from server.domain import events
from trainer.contract.durable import write_durably
from trainer.contract.rundir import (
    CHECKPOINT_FILES,
    DataDir,
    parse_attempt_name,
    parse_checkpoint_name,
)

MARK = "deleted"

log = logging.getLogger("traind")


def mark(directory: Path) -> None:
    """Mark the directory of a run to be deleted; the mark has no effect while its row exists."""
    if directory.is_dir():
        write_durably(directory / MARK, b"deleted on request\n")


def remove_files(directory: Path) -> list[str]:
    """Remove the files of a run whose rows are gone, also those that links lead to: a run may lie
    on another disk. What could not be removed, in words; the mark then stays for the next start.

    Behind a link only what traind itself wrote there is removed: nothing of another program that
    lies beside it, and nothing of another run.
    """
    if not os.path.lexists(directory):
        return []
    problems: list[str] = []
    others = _of_other_runs(directory)
    with suppress(OSError):
        for name in sorted(os.listdir(directory)):
            if name != MARK:
                _remove(directory / name, others, problems)
    if not problems:
        _remove(directory, others, problems)
    return problems


def report(session: Session, run_id: str, problems: list[str], now: float) -> None:
    """Record an event: the run was deleted, but some of its files were not."""
    message = f"files of the deleted run {run_id} could not be removed: {'; '.join(problems[:3])}"
    log.error(message)
    data = {"run": run_id, "problems": problems[:20]}
    events.record(session, "deleted", message, level="error", data=data, now=now)


def _remove(path: Path, others: list[Path], problems: list[str]) -> None:
    """A file, a directory, or a link with what is the run's own in the directory it leads to."""
    for link in _links(path):
        if not _belongs_to(link.resolve(), others):
            _empty(link, problems)
        if not problems:
            link.unlink()
    _delete(path, problems)


def _delete(path: Path, problems: list[str]) -> None:
    def note(_: object, name: str, failure: Any) -> None:
        error = failure[1]
        problems.append(f"{name}: {getattr(error, 'strerror', None) or error}")

    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, onerror=note)
    elif os.path.lexists(path):
        try:
            path.unlink()
        except OSError as error:
            problems.append(f"{path}: {error.strerror}")


def _empty(link: Path, problems: list[str]) -> None:
    """Remove from the linked directory what a run writes there, and itself if nothing is left."""
    target = link.resolve()
    for name in sorted(os.listdir(target)):
        if _is_ours(name) or name.startswith("."):
            _delete(target / name, problems)
    if os.listdir(target):
        log.warning("%s is not removed: it contains files that traind did not write", target)
    else:
        _delete(target, problems)


def _is_ours(name: str) -> bool:
    is_numbered = parse_checkpoint_name(name) or parse_attempt_name(name) is not None
    return bool(is_numbered) or name in _OF_A_RUN


_OF_A_RUN = frozenset({
    "spec.json", "plan.json", "data.json", "frozen.json", "run.json", "trainer.lock", MARK,
    "attempts", "checkpoints",  # of a run
    *CHECKPOINT_FILES,
    "order.json", "inbox.jsonl", "outbox.jsonl", "trainer.log", "exit.json", "lock",  # an attempt
})  # fmt: skip


def _links(path: Path) -> list[Path]:
    """Links to directories that are the run's own: itself, and what it holds by our names."""
    found = [path] if path.is_symlink() and path.is_dir() else []
    if path.name in ("checkpoints", "attempts") and path.is_dir():
        inner = [path / name for name in os.listdir(path)]
        found = [one for one in inner if one.is_symlink() and one.is_dir()] + found
    return found


def _of_other_runs(directory: Path) -> list[Path]:
    """Where the other runs really are: links may lead into them, or above them."""
    with suppress(OSError):
        siblings = [path for path in directory.parent.iterdir() if path.name != directory.name]
        inner = [path / name for path in siblings for name in ("checkpoints", "attempts")]
        return [path.resolve() for path in (*siblings, *inner) if path.is_dir()]
    return []


def _belongs_to(target: Path, others: list[Path]) -> bool:
    return any(other.is_relative_to(target) or target.is_relative_to(other) for other in others)


def sweep(db: Database, paths: DataDir) -> list[str]:
    """Finish deletions that a kill interrupted. Returns the ids of the removed runs."""
    with db.read() as session:
        known = set(session.scalars(select(tables.Run.id)))
    marked = [path.parent for path in (paths.root / "runs").glob(f"*/{MARK}")]
    gone = [directory for directory in marked if directory.name not in known]
    for directory in gone:
        for problem in remove_files(directory):
            log.warning("a deleted run's files stay: %s", problem)
    return [directory.name for directory in gone]
