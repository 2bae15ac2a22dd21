"""A run's checkpoints as the API offers them: find, delete within the rules, open a file."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session

from server.database import tables
from server.domain import lineage
from server.errors import Conflict, NotFound
from trainer.contract.rundir import RunDir

MANIFEST = "manifest.json"
MAX_MANIFEST_BYTES = 4 << 20
_TRASH = ".removing-"  # as the trainer names what it removes, so that either sweeps after the other


@dataclass(frozen=True)
class Part:
    """One file of a checkpoint, as its manifest lists it."""

    path: Path
    sha256: str


def get(session: Session, run: tables.Run, name: str) -> tables.Checkpoint:
    """The row of a checkpoint that is there. Raises NotFound."""
    table = tables.Checkpoint
    found = session.scalar(
        select(table).where(table.run_id == run.id, table.name == name, table.deleted_at.is_(None))
    )
    if found is None:
        raise NotFound(f"Run {run.name} has no checkpoint {name}.")
    return found


def delete(session: Session, run: tables.Run, checkpoint: tables.Checkpoint, now: float) -> None:
    """Mark it deleted; `remove` takes the files once that is committed. Raises Conflict."""
    why = _needed(session, run, checkpoint)
    if why:
        raise Conflict(f"checkpoint {checkpoint.name} must stay: {why}", state=run.state)
    checkpoint.deleted_at = now
    session.add(
        tables.Event(
            run_id=run.id,
            kind="checkpoint_removed",
            step=checkpoint.step,
            message=f"checkpoint {checkpoint.name} was deleted on request",
            data={"name": checkpoint.name},
            unix_seconds=now,
        )
    )


def remove(directory: RunDir, name: str) -> None:
    """Take the files away: renamed first, so that half a checkpoint is never seen."""
    trash = directory.checkpoints / f"{_TRASH}{name}"
    with suppress(OSError):
        os.rename(directory.checkpoints / name, trash)
        shutil.rmtree(trash, ignore_errors=True)


def part(directory: RunDir, checkpoint: tables.Checkpoint, name: str) -> Part:
    """A file by a name that the checkpoint's own manifest lists. Raises NotFound.

    The name is compared with those there are; it becomes a path only when it is one of them.
    """
    home = directory.checkpoints / checkpoint.name
    raw = _read_manifest(home)
    if raw is not None and name == MANIFEST:
        return Part(home / MANIFEST, hashlib.sha256(raw).hexdigest())
    listed = _listed(raw, checkpoint)
    if name not in listed:
        raise NotFound(
            f"Checkpoint {checkpoint.name} has no such file.",
            hint=f"It has {', '.join([*listed, MANIFEST])}." if listed else None,
        )
    return Part(home / name, listed[name])


def _listed(raw: bytes | None, checkpoint: tables.Checkpoint) -> dict[str, str]:
    """{name: sha256} from a manifest that is the one which was reported; else nothing."""
    if raw is None or hashlib.sha256(raw).hexdigest() != checkpoint.manifest_sha256:
        return {}
    with suppress(ValueError, KeyError, TypeError, AttributeError):
        files = json.loads(raw)["files"]
        return {n: str(f["sha256"]) for n, f in files.items() if n == os.path.basename(n) != ""}
    return {}


def _read_manifest(home: Path) -> bytes | None:
    try:
        with (home / MANIFEST).open("rb") as file:
            return file.read(MAX_MANIFEST_BYTES)
    except OSError:
        return None


def _needed(session: Session, run: tables.Run, checkpoint: tables.Checkpoint) -> str | None:
    if checkpoint.pinned:
        return "it is pinned (PATCH it with pinned: false first)"
    usable = lineage.checkpoints(session, run.id)
    if usable and usable[0].id == checkpoint.id:
        return "it is the newest one, from which a resume or an extend goes on"
    waiting = session.scalar(
        select(tables.Phase.name).where(
            tables.Phase.run_id == run.id,
            tables.Phase.from_checkpoint == checkpoint.name,
            tables.Phase.started_at.is_(None),
        )
    )
    return f"phase {waiting} is to begin from it" if waiting else None
