"""Plan context: device, memory, disk and measured speed of this machine."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError
from sqlalchemy import select
from sqlalchemy.orm import Session

from server.database import tables
from server.machine import devices, disk, throughput
from server.machine.devices import Device, DeviceMissing
from server.settings import Settings
from trainer.contract.lanes import most_that_share, named_together
from trainer.contract.peaks import known_peak
from trainer.contract.plan import PlanContext
from trainer.contract.spec import MAX_RANKS, RunSpec, resolve


def with_bundle(settings: Settings, body: dict[str, Any]) -> dict[str, Any]:
    """The body with `core_bundle` filled in from the data directory, if CORE is on without one.

    An invalid body is returned unchanged.
    """
    bundle = settings.paths.core_bundle
    try:
        asked = resolve({"name": "x", **body}).evaluate
    except ValidationError:
        return body
    if not asked.core_every or asked.core_bundle or not (bundle / "core.yaml").is_file():
        return body
    return {**body, "evaluate": {**body.get("evaluate", {}), "core_bundle": str(bundle)}}


def context_for(session: Session, settings: Settings, body: dict[str, Any]) -> PlanContext:
    """Plan context for the spec in a request body; empty for an invalid body."""
    try:
        spec = resolve(body)
    except ValidationError:
        return PlanContext()
    return context(session, settings, spec)


def context(
    session: Session,
    settings: Settings,
    spec: RunSpec,
    found: tuple[Device, ...] | None = None,
) -> PlanContext:
    """Plan context for the device that `spec` requests on this machine."""
    present = devices.discover() if found is None else found
    gpus = num_gpus(spec, present)
    spec = spec.on_gpus(gpus)
    wanted = (spec.rank_devices or ["cuda" if gpus else spec.device])[0]
    device = _device(wanted, present) if spec.place is None else None
    name = named_together(device.name, spec.num_ranks) if device else None
    peak = known_peak(device.name) if device else None
    asked = spec.batch.device_batch_size
    rows = asked if isinstance(asked, int) else None
    seen = throughput.measured(session, name, spec, rows)
    return PlanContext(
        device_type=_type(device.device if device else spec.first_device if spec.place else wanted),
        device_name=device.name if device else None,
        device_memory_bytes=device.memory_bytes if device else None,
        peak_flops=peak.value if peak else None,
        peak_source=peak.source if peak else None,
        tokens_per_second=seen.tokens_per_second if seen else None,
        throughput_source=seen.source if seen else None,
        measured_rows=seen.rows if seen else None,
        measured_peak_bytes=seen.peak_bytes if seen else None,
        disk_free_bytes=disk.least_free(settings.paths.root),
        corpus_tokens=_corpus_tokens(session, settings, spec),
        gpu_unusable=devices.unusable_gpu() if found is None else None,
        capability=device.capability if device else None,
        gpus=gpus,
    )


def num_gpus(spec: RunSpec, found: Sequence[Device]) -> int | None:
    """Number of GPUs that `all` selects here; None for an explicit number or without a GPU."""
    cards = devices.all_gpus(found)
    if spec.gpus != "all" or not cards:
        return None
    rows = spec.batch.device_batch_size
    tokens = spec.batch.tokens
    whole = spec.numerics.lanes or MAX_RANKS
    if spec.numerics.lanes is None and isinstance(tokens, int):
        whole = tokens // spec.model.sequence_len // (rows if isinstance(rows, int) else 1)
    return most_that_share(min(len(cards), MAX_RANKS), whole)


def _device(wanted: str, found: tuple[Device, ...]) -> Device | None:
    """The requested device; None if it is not on this machine."""
    try:
        name = devices.resolve(wanted, found)
    except DeviceMissing:
        return None
    return next(device for device in found if device.device == name)


def _type(device: str) -> Literal["cpu", "cuda", "mps"]:
    if device.startswith("cuda"):
        return "cuda"
    return "mps" if device == "mps" else "cpu"


def _corpus_tokens(session: Session, settings: Settings, spec: RunSpec) -> int | None:
    """Tokens in the corpus, as counted by an earlier run with the same data and vocabulary."""
    wanted = (spec.data.model_dump(mode="json"), spec.model.vocab_size)
    earlier = (
        select(tables.Run.id, tables.Run.spec).order_by(tables.Run.created_at.desc()).limit(20)
    )
    for run_id, kept in session.execute(earlier):
        if (kept.get("data"), kept.get("model", {}).get("vocab_size")) == wanted:
            found = _cached_count(settings.paths.run(run_id).data)
            if found is not None:
                return found
    return None


def _cached_count(path: Path) -> int | None:
    try:
        count = json.loads(path.read_bytes())["corpus_tokens"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return count if isinstance(count, int) else None
