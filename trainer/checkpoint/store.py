"""Checkpoints: immutable, verified directories.

step-NNNNNNNNN-aAAAA/ holds model.safetensors, optimizer.safetensors, state.json and, written last,
manifest.json with size and sha256 of each and a seal over itself. Everything is written to a
temporary directory and fsynced, and the directory's rename commits it. Every load verifies first: a
damaged checkpoint is skipped and reported, and training never silently restarts at step 0.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict
from safetensors.torch import load_file
from torch import Tensor

from trainer.checkpoint import fence, safetensors_writer
from trainer.contract import failpoint, holds, os_errors
from trainer.contract.durable import fsync_directory, write_durably
from trainer.contract.orders import Lineage
from trainer.contract.rundir import (
    CHECKPOINT_FILES,
    checkpoint_name,
    parse_checkpoint_name,
    remove_checkpoint,
)

MODEL, OPTIMIZER, STATE, MANIFEST = CHECKPOINT_FILES
READ_BYTES = 4_000_000
_TEMP = ".writing-"
_TRASH = ".removing-"
_SEAL = b',\n "seal": "'


class FileEntry(BaseModel):
    model_config = ConfigDict(extra="forbid")
    bytes: int
    sha256: str


class Manifest(BaseModel):
    """Manifest of a checkpoint. evaluations: {"bpb": {value, identity}, …} at this step."""

    model_config = ConfigDict(extra="forbid")

    format: int = 1
    run_id: str
    attempt: int
    step: int
    tokens_seen: int
    parent: str | None
    why: str
    pinned: bool = False
    files: dict[str, FileEntry]
    spec_sha256: str
    data_identity: str
    fingerprint: dict[str, Any]
    evaluations: dict[str, Any] = {}
    next_loss: float | None = None
    approximate: str | None = None
    unix_seconds: float


class Bad(Exception):
    """Damaged checkpoint that must not be loaded; the message names file and cause."""


@dataclass(frozen=True)
class FoundCheckpoint:
    path: Path
    manifest: Manifest
    passed_over: list[tuple[str, str]] = field(default_factory=list)


# --- writing -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Snapshot:
    """Host copies of everything that must survive; safe to write while training continues."""

    step: int
    model: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]
    state: dict[str, Any]

    @property
    def bytes(self) -> int:
        tensors = [*self.model.values(), *self.optimizer.values()]
        return sum(t.numel() * t.element_size() for t in tensors)


def write(
    directory: Path, snapshot: Snapshot, describe: Callable[[dict[str, FileEntry]], Manifest]
) -> tuple[Path, Manifest]:
    """Write `snapshot` below `directory` and commit it. Raises OSError with nothing left behind.

    describe(files) makes the manifest. Raises Fenced when a newer attempt exists.
    """
    name = checkpoint_name(snapshot.step, describe({}).attempt)
    directory.mkdir(parents=True, exist_ok=True)
    own = fence.staging(directory, describe({}).attempt)
    temp = own or directory / f"{_TEMP}{name}-{os.getpid()}"
    fence.make(temp)
    try:
        files = _write_files(temp, snapshot)
        manifest = describe(files)
        failpoint.hit("checkpoint.before_manifest")
        write_durably(temp / MANIFEST, seal(manifest))
        fsync_directory(temp)
        fence.refuse_if_succeeded(directory.parent, manifest.attempt)
        failpoint.hit("checkpoint.before_rename")
        fence.commit(temp, directory / name)
        _make_name_durable(directory / name, temp)
    except BaseException:
        shutil.rmtree(temp, ignore_errors=True)
        raise
    return directory / name, manifest


def _make_name_durable(path: Path, temp: Path) -> None:
    """fsync the directory that contains `path`; if that fails, the checkpoint is not committed and
    is renamed back to its temporary name."""
    try:
        failpoint.hit("checkpoint.before_dir_fsync")
        fsync_directory(path.parent)
    except OSError:
        os.rename(path, temp)
        raise


def _write_files(temp: Path, snapshot: Snapshot) -> dict[str, FileEntry]:
    files = {}
    for name, tensors in ((MODEL, snapshot.model), (OPTIMIZER, snapshot.optimizer)):
        size, sha256 = safetensors_writer.write(temp / name, tensors)
        files[name] = FileEntry(bytes=size, sha256=sha256)
    state = json.dumps(snapshot.state, separators=(",", ":"), allow_nan=False).encode()
    write_durably(temp / STATE, state)
    files[STATE] = FileEntry(bytes=len(state), sha256=hashlib.sha256(state).hexdigest())
    return files


def seal(manifest: Manifest) -> bytes:
    """The manifest's file: its JSON, with the sha256 of everything before it as the last field."""
    body = manifest.model_dump_json(indent=1).encode().removesuffix(b"\n}")
    return body + _SEAL + hashlib.sha256(body).hexdigest().encode() + b'"\n}'


def free_bytes(directory: Path) -> int:
    """Free disk space at a directory, in bytes."""
    existing = directory if directory.exists() else directory.parent
    return shutil.disk_usage(existing).free


# --- reading -------------------------------------------------------------------------------------


def verify(path: Path, run_id: str | None = None) -> Manifest:
    """Verify every byte of a checkpoint and return its manifest.

    run_id: the run it must belong to; a checkpoint copied from another run is never trained on.
    Raises Bad; OSError if the error is not about the files.
    """
    manifest = read_manifest(path)
    if run_id is not None and not belongs(manifest, run_id):
        raise Bad(f"{MANIFEST}: it is a checkpoint of run {manifest.run_id}, not of {run_id}")
    named = parse_checkpoint_name(path.name)
    if named not in (None, (manifest.step, manifest.attempt)):
        raise Bad(f"{MANIFEST}: is of step {manifest.step}, attempt {manifest.attempt}")
    if set(manifest.files) != {MODEL, OPTIMIZER, STATE}:
        raise Bad(f"{MANIFEST}: names the files {sorted(manifest.files)}")
    for name, entry in manifest.files.items():
        _verify_file(path / name, entry)
    return manifest


def belongs(manifest: Manifest, run_id: str) -> bool:
    """True if the checkpoint is of this run. An import's job id determines the run's id."""
    imported = manifest.attempt == 0 and manifest.run_id.startswith("job_")
    owner = f"run_{manifest.run_id.removeprefix('job_')}" if imported else manifest.run_id
    return owner == run_id


def require(path: Path, run_id: str | None = None) -> Manifest:
    """`verify` of a named checkpoint: errors name its directory. Raises Bad, OSError."""
    try:
        return verify(path, run_id)
    except Bad as error:
        raise Bad(f"checkpoint {path}: {error}") from None


def read_manifest(path: Path) -> Manifest:
    """Read the manifest and check its seal, but not the files. Raises Bad, OSError."""
    try:
        body, _, rest = (path / MANIFEST).read_bytes().rpartition(_SEAL)
        if rest != hashlib.sha256(body).hexdigest().encode() + b'"\n}':
            raise Bad(f"{MANIFEST}: the contents are not what was written (its seal is broken)")
        return Manifest.model_validate_json(body + b"}")
    except FileNotFoundError:
        what = MANIFEST if path.is_dir() else "the directory"
        raise Bad(f"{what} is missing") from None
    except OSError as error:
        _require_about_the_file(error)
        raise Bad(f"{MANIFEST}: {error.strerror}") from None
    except ValueError as error:
        raise Bad(f"{MANIFEST}: {' '.join(str(error).split())[:600]}") from None


def _require_about_the_file(error: OSError) -> None:
    """Re-raise an error that does not mean damage: too many open files, no permission."""
    if not os_errors.is_about_the_file(error):
        raise error


def manifest_sha256(path: Path) -> str:
    """The sha256 of a checkpoint's manifest: it identifies the whole directory."""
    return hashlib.sha256((path / MANIFEST).read_bytes()).hexdigest()


def _verify_file(path: Path, entry: FileEntry) -> None:
    try:
        size = path.stat().st_size
        if size != entry.bytes:
            raise Bad(f"{path.name}: {size:,} bytes, {entry.bytes:,} were written")
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while chunk := file.read(READ_BYTES):
                digest.update(chunk)
    except OSError as error:
        _require_about_the_file(error)
        raise Bad(f"{path.name}: {error.strerror}") from None
    if digest.hexdigest() != entry.sha256:
        raise Bad(f"{path.name}: the contents are not what was written (sha256 differs)")


def candidates(directory: Path, lineage: Lineage, max_step: int | None = None) -> list[Path]:
    """Checkpoint directories of the lineage, newest first; found by a scan, not by a link."""
    found = []
    for path in directory.iterdir() if directory.is_dir() else ():
        named = parse_checkpoint_name(path.name)
        if named is None or not path.is_dir():  # a link leads to another disk
            continue
        step, attempt = named
        if lineage.holds(attempt, step) and (max_step is None or step <= max_step):
            found.append((step, attempt, path))
    return [path for _, _, path in sorted(found, reverse=True)]


def newest(
    directory: Path, lineage: Lineage, max_step: int | None = None, run_id: str | None = None
) -> FoundCheckpoint | None:
    """The newest checkpoint that verifies, with the skipped ones. None if there is no checkpoint.

    Raises Bad if there are some and none verifies: a restart at step 0 is never silent.
    """
    passed_over: list[tuple[str, str]] = []
    for path in candidates(directory, lineage, max_step):
        try:
            return FoundCheckpoint(path, verify(path, run_id), passed_over)
        except Bad as error:
            passed_over.append((path.name, str(error)))
    if passed_over:
        causes = "; ".join(f"{name}: {why}" for name, why in passed_over)
        raise Bad(f"none of {len(passed_over)} checkpoints in {directory} verifies ({causes})")
    return None


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Any]]:
    """(model, optimizer, state) of a verified checkpoint, on the host."""
    state = json.loads((path / STATE).read_bytes())
    return load_file(path / MODEL), load_file(path / OPTIMIZER), state


def remove(path: Path) -> None:
    """Remove a checkpoint by rename first, so that a kill never leaves one that looks complete.

    A checkpoint that a job holds by then stays. Raises OSError.
    """
    trash = path.with_name(f"{_TRASH}{path.name}-{time.time_ns()}")
    failpoint.hit("checkpoint.remove")
    os.rename(path, trash)
    if holds.is_held(path.parent, path.name):
        os.rename(trash, path)
        return
    fsync_directory(path.parent)
    remove_checkpoint(trash)


def sweep(directory: Path) -> list[str]:
    """Remove leftovers of killed writers and removers; call only while holding the run's lock."""
    leftovers = [
        path
        for path in (directory.iterdir() if directory.is_dir() else ())
        if path.name.startswith((_TEMP, _TRASH))
    ]
    for path in leftovers:
        remove_checkpoint(path)
    return [path.name for path in leftovers]
