"""What a spec names must be there before a run is made of it: device, corpus, tokenizer, bundle.

Only what can be known at once, without reading the corpus: the prepare job looks inside.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session

from server.database import tables
from server.errors import Invalid
from server.machine import devices
from server.machine.devices import Device, DeviceMissing
from trainer.contract.spec import RunSpec

_WANTED = {"parquet": ("two or more .parquet files", ".parquet", 2)}


def require(session: Session, spec: RunSpec, found: tuple[Device, ...]) -> None:
    """Raises Invalid with a pointer to each field whose thing is missing."""
    problems = [
        {"pointer": pointer, "detail": detail}
        for pointer, detail in (
            *_device(spec, found),
            *_corpus(spec),
            *_tokenizer(session, spec),
            *_bundle(spec),
        )
    ]
    if problems:
        raise Invalid(problems[0]["detail"], errors=problems)


def _device(spec: RunSpec, found: tuple[Device, ...]) -> Iterator[tuple[str, str]]:
    try:
        devices.resolve(spec.device, found)
    except DeviceMissing:
        there = ", ".join(device.device for device in found) or "none"
        yield "/device", f"There is no device {spec.device} on this machine; there is: {there}."


def _corpus(spec: RunSpec) -> Iterator[tuple[str, str]]:
    data = spec.data
    if data.path is None:
        return
    place = Path(data.path).expanduser()
    if "\0" in data.path or not place.is_absolute():
        yield "/data/path", f"{data.path!r} must be an absolute path on the daemon's machine."
    elif not _exists(place):
        yield "/data/path", f"{data.path} does not exist on the daemon's machine."
    elif place.is_dir() and not _has_files(place):
        yield "/data/path", f"{data.path} holds no file with text in it."
    elif place.is_file() and place.stat().st_size == 0:
        yield "/data/path", f"{data.path} is empty: it holds no text."
    elif data.source in _WANTED:
        words, suffix, least = _WANTED[data.source]
        there = sum(1 for p in place.glob(f"*{suffix}")) if place.is_dir() else 0
        if there < least:
            yield "/data/path", f"{data.path} must be a directory with {words}; it has {there}."


def _exists(place: Path) -> bool:
    try:
        return place.exists()
    except OSError:
        return False


def _has_files(place: Path) -> bool:
    """Whether any file below `place` is not empty."""
    for folder, _, names in os.walk(place):
        for name in names:
            try:
                if os.path.getsize(os.path.join(folder, name)):
                    return True
            except OSError:
                continue
    return False


def _tokenizer(session: Session, spec: RunSpec) -> Iterator[tuple[str, str]]:
    asked = spec.data.tokenizer
    if asked.path is not None and not _exists(Path(asked.path).expanduser()):
        yield "/data/tokenizer/path", f"{asked.path} does not exist on the daemon's machine."
    if asked.run is not None:
        table = tables.Run
        known = (table.name == asked.run) | (table.id == asked.run)
        if session.scalar(select(table.id).where(known)) is None:
            yield "/data/tokenizer/run", f"There is no run {asked.run!r} to take it from."


def _bundle(spec: RunSpec) -> Iterator[tuple[str, str]]:
    bundle = spec.evaluate.core_bundle
    if bundle is not None and not _exists(Path(bundle).expanduser() / "core.yaml"):
        yield "/evaluate/core_bundle", f"{bundle} holds no core.yaml: `traind fetch core` gets one."
