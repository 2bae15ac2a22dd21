"""Preflight checks of a spec before its run is created: device, memory, corpus, tokenizer, bundle.

Only fast checks, which do not read the corpus: the prepare job reads it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from sqlalchemy import select
from sqlalchemy.orm import Session

from server import webhook_receivers
from server.database import tables
from server.domain import gang, request_paths
from server.errors import Invalid
from server.launch import torchrun
from server.launch.slurm import client as slurm
from server.machine import devices, plan_context
from server.machine.devices import Device, DeviceMissing
from trainer.contract import units
from trainer.contract.peaks import fp8_missing
from trainer.contract.plan import Plan, PlanContext, memory
from trainer.contract.plan.batch import fitting_rows
from trainer.contract.shape import shape_of
from trainer.contract.spec import HoursRule, RunSpec

_PARQUET_FILES = 2  # one instance for validation


def require(session: Session, spec: RunSpec, plan: Plan, found: tuple[Device, ...]) -> None:
    """Raises Invalid with a pointer to each field that names something missing or that cannot
    fit."""
    problems = [
        {"pointer": pointer, "detail": detail}
        for pointer, detail in (
            *_device(spec, found),
            *_memory(spec, plan),
            *_energy(spec, found),
            *_corpus(spec),
            *_tokenizer(session, spec),
            *_bundle(spec),
            *_receivers(spec.notify),
        )
    ]
    if problems:
        raise Invalid(problems[0]["detail"], errors=problems)


def require_place(spec: RunSpec) -> None:
    """Check the place that a resume names. Raises Invalid."""
    for pointer, detail in _place(spec):
        raise Invalid(detail, errors=[{"pointer": pointer, "detail": detail}])


def require_receivers(urls: list[str]) -> None:
    """Check the addresses of `notify` of a changed run. Raises Invalid."""
    problems = [{"pointer": pointer, "detail": said} for pointer, said in _receivers(urls)]
    if problems:
        raise Invalid(problems[0]["detail"], errors=problems)


def require_tariff(hours: Sequence[HoursRule] | None, tariff: str | None) -> None:
    """Require a tariff for hours that depend on a price. Raises Invalid."""
    if tariff is not None:
        return
    for index, rule in enumerate(hours or ()):
        if rule.price_below is not None:
            detail = "no tariff is set, so no price is known: start the daemon with --tariff"
            pointer = f"/hours/{index}/price_below"
            raise Invalid(detail, errors=[{"pointer": pointer, "detail": detail}])


def require_gang(run: tables.Run, overrides: Mapping[str, Any], found: tuple[Device, ...]) -> None:
    """Check the devices that a resume names. Raises Invalid."""
    chosen = [key for key in ("gpus", "devices") if overrides.get(key) is not None]
    if not chosen:
        return
    problems = ["give gpus or devices, not both"] if len(chosen) > 1 else []
    if not problems:
        try:
            spec = RunSpec.model_validate(gang.effective_spec(run, overrides))
            problems = [detail for _, detail in _device(spec, found)]
        except ValidationError as error:
            problems = [one["msg"] for one in error.errors()]
    if problems:
        pointer = f"/overrides/{chosen[0]}"
        errors = [{"pointer": pointer, "detail": detail} for detail in problems]
        raise Invalid(problems[0], errors=errors)


def require_rows(run: tables.Run, rows: int | None) -> None:
    """Check the rows per pass that a resume sets. Raises Invalid."""
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
        if why := webhook_receivers.why_not(url):
            yield f"/notify/{index}", why


def _device(spec: RunSpec, found: tuple[Device, ...]) -> Iterator[tuple[str, str]]:
    if spec.place is not None:
        yield from _place(spec)
        return
    gpus = plan_context.num_gpus(spec, found)
    if spec.on_gpus(gpus).rank_devices:
        yield from _gang(spec.on_gpus(gpus), found)
        return
    if spec.gpus == "all" and gpus is None:
        yield "/gpus", "There is no GPU on this machine."
        return
    try:
        name = devices.resolve("cuda" if spec.gpus == "all" else spec.device, found)
        device = next(device for device in found if device.device == name)
        if spec.numerics.precision == "fp8" and not _may_have_fp8(device):
            why = fp8_missing(device.name, device.capability)
            yield "/numerics/precision", f"{why}."
    except DeviceMissing:
        there = ", ".join(device.device for device in found) or "none"
        yield "/device", f"There is no device {spec.device} on this machine; there is: {there}."


def _energy(spec: RunSpec, found: tuple[Device, ...]) -> Iterator[tuple[str, str]]:
    """Check that the device of a budget in kWh reports its power."""
    if spec.budget is None or spec.budget.kwh is None:
        return
    try:
        names = spec.rank_devices or [devices.resolve(spec.device, found)]
    except DeviceMissing:
        return  # already reported
    if not all(name.startswith("cuda") for name in names):
        yield (
            "/budget/kwh",
            f"{names[0]} does not report its power, so its energy is not counted: give minutes or "
            "tokens.",
        )


def _place(spec: RunSpec) -> Iterator[tuple[str, str]]:
    missing = slurm.missing_programs() if spec.place is not None else []
    if missing:
        yield (
            "/place",
            f"{' and '.join(missing)} not found on the daemon's machine, which must be one that "
            "submits jobs, such as a login node.",
        )


def _gang(spec: RunSpec, found: tuple[Device, ...]) -> Iterator[tuple[str, str]]:
    """Check the devices of a run on several: they must exist and be of one kind, for equal bits."""
    field = "/gpus" if spec.devices is None else "/devices"
    present = {device.device: device for device in found}
    there = ", ".join(present) or "none"
    missing = [name for name in dict.fromkeys(spec.rank_devices) if name not in present]
    if missing:
        yield field, f"There is no {' and no '.join(missing)} on this machine; there is: {there}."
        return
    if not torchrun.is_supported():
        yield field, "Training on several devices requires Linux."
    names = {present[name].name for name in spec.rank_devices}
    if len(names) > 1:
        yield (
            field,
            f"Devices of different kinds cannot train together: {', '.join(sorted(names))}.",
        )
    if spec.numerics.precision == "fp8":
        for name in spec.rank_devices:
            if not _may_have_fp8(present[name]):
                why = fp8_missing(present[name].name, present[name].capability)
                yield "/numerics/precision", f"{why}."


def _may_have_fp8(device: Device) -> bool:
    unknown = device.device.startswith("cuda") and device.capability is None
    return unknown or fp8_missing(device.name, device.capability) is None


def _memory(spec: RunSpec, plan: Plan) -> Iterator[tuple[str, str]]:
    """Check for a run that would end out of memory. There is no override: a refused plan exceeds
    the device by more than the estimate's error, or was measured; `auto` runs real steps and takes
    what fits.
    """
    if not memory.cannot_fit(plan.memory):
        return
    there = plan.memory.available or 0
    context = PlanContext(device_type="cuda", device_memory_bytes=there)
    batch = plan.batch
    fits = fitting_rows(spec, shape_of(spec.model), batch.tokens // batch.sequence_len, context)
    how = "as measured in an earlier run" if plan.memory.measured else "estimated"
    advice = f"{fits} should fit" if fits else "not even 1 row should fit: make the model smaller"
    yield (
        "/batch/device_batch_size",
        f"With {batch.device_batch_size} rows of {batch.sequence_len:,} tokens per pass the run "
        f"needs about {units.num_bytes(plan.memory.expected)} of device memory ({how}) and the "
        f"device has {units.num_bytes(there)}; {advice}.",
    )


def _corpus(spec: RunSpec) -> Iterator[tuple[str, str]]:
    data = spec.data
    if data.path is None:
        return
    place, why = request_paths.found(data.path)
    if place is None:
        yield "/data/path", why
    elif not place.is_dir() and not place.is_file():
        yield "/data/path", f"{data.path} is neither a directory nor a file."
    elif place.is_dir() and not _has_files(place):
        yield "/data/path", f"{data.path} contains no text file."
    elif place.is_file() and place.stat().st_size == 0:
        yield "/data/path", f"{data.path} is empty."
    elif data.source == "parquet" and (there := _parquet_files(place)) < _PARQUET_FILES:
        yield (
            "/data/path",
            f"{data.path} must be a directory with two or more .parquet files; it has {there}.",
        )
    elif data.source == "nanochat_packed" and not _has_packed(place):
        yield (
            "/data/path",
            f"{data.path} must be a directory with at least one train_NNNNN.bin; it has 0.",
        )


def _has_files(place: Path) -> bool:
    """True if any file below `place` is not empty."""
    for folder, _, names in os.walk(place):
        for name in names:
            try:
                if os.path.getsize(os.path.join(folder, name)):
                    return True
            except OSError:
                continue
    return False


def _parquet_files(place: Path) -> int:
    """Number of .parquet files below a folder, counted only as far as needed; 0 for a file."""
    found = 0
    for folder, folders, names in os.walk(place):
        folders[:] = [name for name in folders if not name.startswith(".")]
        wanted = (n for n in names if n.lower().endswith(".parquet") and not n.startswith("."))
        found += sum(1 for name in wanted if os.path.exists(os.path.join(folder, name)))
        if found >= _PARQUET_FILES:
            break
    return found


def _has_packed(place: Path) -> bool:
    return place.is_dir() and any(place.glob("train_*.bin"))


def _tokenizer(session: Session, spec: RunSpec) -> Iterator[tuple[str, str]]:
    asked = spec.data.tokenizer
    if asked.path is not None:
        place, why = request_paths.found(asked.path)
        if place is None:
            yield "/data/tokenizer/path", why
    if asked.run is not None:
        table = tables.Run
        known = (table.name == asked.run) | (table.id == asked.run)
        if session.scalar(select(table.id).where(known)) is None:
            yield "/data/tokenizer/run", f"There is no run {asked.run!r} to take it from."


def _bundle(spec: RunSpec) -> Iterator[tuple[str, str]]:
    bundle = spec.evaluate.core_bundle
    if bundle is None:
        return
    place, why = request_paths.found(bundle)
    if place is None:
        yield "/evaluate/core_bundle", why
    elif request_paths.found(str(place / "core.yaml"))[0] is None:
        yield "/evaluate/core_bundle", f"{bundle} has no core.yaml: run `traind fetch core`."
