"""What a spec names must be there before a run is made of it: device, corpus, tokenizer, bundle.

Only what can be known at once, without reading the corpus: the prepare job looks inside.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session

from server import receivers
from server.database import tables
from server.errors import Invalid
from server.machine import devices
from server.machine.devices import Device, DeviceMissing
from trainer.contract.peaks import fp8_missing
from trainer.contract.plan import Plan, PlanContext, gigabytes, memory
from trainer.contract.plan.batch import fitting_rows
from trainer.contract.shape import shape_of
from trainer.contract.spec import RunSpec

_WANTED = {
    "parquet": ("two or more .parquet files", "*.parquet", 2),
    "nanochat_packed": ("at least one train_NNNNN.bin", "train_*.bin", 1),
}


def require(session: Session, spec: RunSpec, plan: Plan, found: tuple[Device, ...]) -> None:
    """Raises Invalid with a pointer to each field whose thing is missing or cannot fit."""
    problems = [
        {"pointer": pointer, "detail": detail}
        for pointer, detail in (
            *_device(spec, found),
            *_memory(spec, plan),
            *_corpus(spec),
            *_tokenizer(session, spec),
            *_bundle(spec),
            *_receivers(spec.notify),
        )
    ]
    if problems:
        raise Invalid(problems[0]["detail"], errors=problems)


def require_receivers(urls: list[str]) -> None:
    """The same for a run that is to tell others from now on. Raises Invalid."""
    problems = [{"pointer": pointer, "detail": said} for pointer, said in _receivers(urls)]
    if problems:
        raise Invalid(problems[0]["detail"], errors=problems)


def require_rows(run: tables.Run, rows: int | None) -> None:
    """The same for rows that a resume asks for. Raises Invalid."""
    plan, spec = Plan.model_validate(run.plan), RunSpec.model_validate(run.spec)
    if rows is None or plan.memory.available is None:
        return
    batch = plan.batch.model_copy(update={"device_batch_size": rows})
    context = PlanContext(device_type="cuda", device_memory_bytes=plan.memory.available)
    needed = memory.estimate_memory(shape_of(spec.model), batch, spec, context)
    for _, detail in _memory(spec, plan.model_copy(update={"batch": batch, "memory": needed})):
        raise Invalid(
            detail, errors=[{"pointer": "/overrides/device_batch_size", "detail": detail}]
        )


def _receivers(urls: list[str]) -> Iterator[tuple[str, str]]:
    for index, url in enumerate(urls):
        if why := receivers.why_not(url):
            yield f"/notify/{index}", why


def _device(spec: RunSpec, found: tuple[Device, ...]) -> Iterator[tuple[str, str]]:
    try:
        name = devices.resolve(spec.device, found)
        device = next(device for device in found if device.device == name)
        if spec.numerics.precision == "fp8" and not _may_have_fp8(device):
            why = fp8_missing(device.name, device.capability)
            yield "/numerics/precision", f"{why}."
    except DeviceMissing:
        there = ", ".join(device.device for device in found) or "none"
        yield "/device", f"There is no device {spec.device} on this machine; there is: {there}."


def _may_have_fp8(device: Device) -> bool:
    unknown = device.device.startswith("cuda") and device.capability is None
    return unknown or fp8_missing(device.name, device.capability) is None


def _memory(spec: RunSpec, plan: Plan) -> Iterator[tuple[str, str]]:
    """A run that would end out of memory. There is no way to insist: what is refused is 25 % beyond
    the device by the estimate, or was measured; `auto` runs real steps and takes what fits.
    """
    if not memory.cannot_fit(plan.memory):
        return
    there = plan.memory.available or 0
    context = PlanContext(device_type="cuda", device_memory_bytes=there)
    batch = plan.batch
    fits = fitting_rows(spec, shape_of(spec.model), batch.tokens // batch.sequence_len, context)
    how = "as measured in an earlier run" if plan.memory.measured else "estimated"
    advice = f"{fits} should fit" if fits else "not even 1 should fit: make the model smaller"
    yield (
        "/batch/device_batch_size",
        f"With {batch.device_batch_size} rows of {batch.sequence_len:,} tokens a pass the run "
        f"needs about {gigabytes(plan.memory.expected)} of device memory ({how}) and the device "
        f"has {gigabytes(there)}; {advice}.",
    )


def _corpus(spec: RunSpec) -> Iterator[tuple[str, str]]:
    data = spec.data
    if data.path is None:
        return
    place = Path(data.path).expanduser()
    if "\0" in data.path or not place.is_absolute():
        yield "/data/path", f"{data.path!r} must be an absolute path on the daemon's machine."
    elif not _exists(place):
        yield "/data/path", f"{data.path} does not exist on the daemon's machine."
    elif not place.is_dir() and not place.is_file():
        yield "/data/path", f"{data.path} is neither a directory nor a file."
    elif place.is_dir() and not _has_files(place):
        yield "/data/path", f"{data.path} holds no file with text in it."
    elif place.is_file() and place.stat().st_size == 0:
        yield "/data/path", f"{data.path} is empty: it holds no text."
    elif data.source in _WANTED:
        words, pattern, least = _WANTED[data.source]
        there = sum(1 for _ in place.glob(pattern)) if place.is_dir() else 0
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
