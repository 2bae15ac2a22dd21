"""Checkpoint rules: find, delete, open a file."""

from __future__ import annotations

import hashlib
import json
import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session

from server.database import tables
from server.domain import checkpoint_lookup, events, lineage
from server.errors import Conflict, NotFound
from trainer.contract import holds
from trainer.contract.rundir import RunDir, parse_checkpoint_name, remove_checkpoint

MANIFEST = "manifest.json"
MAX_MANIFEST_BYTES = 4_000_000
_TRASH = ".removing-"  # the same as the trainer, so that each sweeps after the other


@dataclass(frozen=True)
class Part:
    """One file of a checkpoint, as its manifest lists it."""

    path: Path
    sha256: str


def get(session: Session, run: tables.Run, name: str) -> tables.Checkpoint:
    """The row of an existing checkpoint. Raises NotFound."""
    found = checkpoint_lookup.existing_by_name(session, run.id, name)
    if found is None:
        raise NotFound(f"Run {run.name} has no checkpoint {name}.")
    return found


def record_found(session: Session, run: tables.Run) -> list[str]:
    """Create rows of checkpoints that were committed but not reported, because of a kill between
    the two: a resume uses them, so they are listed and pinned like all others. Returns their
    names."""
    directory: RunDir = session.info["paths"].run(run.id)
    known = checkpoint_lookup.known_names(session, run.id)
    limits, found = lineage.limits(session, run.id), []
    for name in sorted(_names(directory.checkpoints) - known):
        step, number = parse_checkpoint_name(name) or (0, -1)
        if not limits.holds(number, step):
            continue
        row = _from_manifest(session, run, directory.checkpoints / name, step, number)
        if row is not None:
            session.add(row)
            found.append(name)
            _record_found(session, run, row)
    session.flush()
    return found


def _names(checkpoints: Path) -> set[str]:
    try:
        names = os.listdir(checkpoints)
    except OSError:
        return set()
    return {name for name in names if parse_checkpoint_name(name)}


def _from_manifest(
    session: Session, run: tables.Run, home: Path, step: int, number: int
) -> tables.Checkpoint | None:
    """The row of a checkpoint of this run from its manifest; None if it belongs to another run."""
    raw = _read_manifest(home)
    with suppress(ValueError, KeyError, TypeError, AttributeError):
        manifest = json.loads(raw or b"")
        owner = (manifest["run_id"], manifest["step"], manifest["attempt"])
        if raw is None or owner != (run.id, step, number):
            return None
        bpb = manifest.get("evaluations", {}).get("bpb", {})
        return tables.Checkpoint(
            run_id=run.id,
            attempt_id=session.scalar(
                select(tables.Attempt.id).where(
                    tables.Attempt.run_id == run.id, tables.Attempt.number == number
                )
            ),
            name=home.name,
            step=step,
            bytes=sum(int(file["bytes"]) for file in manifest["files"].values()),
            manifest_sha256=hashlib.sha256(raw).hexdigest(),
            why=str(manifest["why"])[:16],
            pinned=bool(manifest.get("pinned")),
            val_bpb=bpb.get("value") if bpb.get("step") == step else None,
            next_loss=manifest.get("next_loss"),
            created_at=float(manifest["unix_seconds"]),
        )
    return None


def _record_found(session: Session, run: tables.Run, row: tables.Checkpoint) -> None:
    words = f"{row.name} was found on the disk: complete, but not reported before its "
    events.record(
        session, "checkpoint", f"{words}trainer ended", run_id=run.id, step=row.step,
        data={"name": row.name}, now=row.created_at,
    )  # fmt: skip


def delete(session: Session, run: tables.Run, checkpoint: tables.Checkpoint, now: float) -> None:
    """Mark a checkpoint deleted; `remove` deletes its files after the commit. Raises Conflict."""
    why = _needed(session, run, checkpoint)
    if why:
        raise Conflict(f"checkpoint {checkpoint.name} cannot be deleted: {why}", state=run.state)
    checkpoint.deleted_at = now
    events.record(
        session, "checkpoint_removed", f"checkpoint {checkpoint.name} was deleted on request",
        run_id=run.id, step=checkpoint.step, data={"name": checkpoint.name}, now=now,
    )  # fmt: skip


def remove(directory: RunDir, name: str) -> None:
    """Delete the files, after a rename, so that a partial checkpoint is never visible."""
    trash = directory.checkpoints / f"{_TRASH}{name}-{time.time_ns()}"
    with suppress(OSError):
        os.rename(directory.checkpoints / name, trash)
        remove_checkpoint(trash)


def part(directory: RunDir, checkpoint: tables.Checkpoint, name: str) -> Part:
    """A file of a checkpoint, by a name in its manifest. Raises NotFound.

    The name is compared with the listed ones, and becomes a path only if it is one of them.
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
    """{name: sha256} from the manifest; empty if it is not the one that was reported."""
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
    if holds.is_held(session.info["paths"].run(run.id).checkpoints, checkpoint.name):
        return "a job is reading it"
    newest = checkpoint_lookup.newest(session, run.id)
    if newest is not None and newest.id == checkpoint.id:
        return "it is the newest one, which a resume or an extend needs"
    waiting = session.scalar(
        select(tables.Phase.name).where(
            tables.Phase.run_id == run.id,
            tables.Phase.from_checkpoint == checkpoint.name,
            tables.Phase.started_at.is_(None),
        )
    )
    return f"phase {waiting} will begin from it" if waiting else None
