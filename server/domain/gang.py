"""Gangs: the devices of a run on several devices, by its spec or by a resume's overrides.

`gpus: all` is resolved here, when an attempt starts or a plan is made: the GPUs of this machine
that are like its first, as many as share the run's lanes, so that a resume stays exact.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from server.database.tables import Attempt, Run
from server.launch import torchrun
from server.machine.devices import Device, all_gpus
from trainer.contract.lanes import most_that_share
from trainer.contract.spec import RunSpec, rank_devices

ANY_GPU = "cuda"  # as Run.device has it where all GPUs are asked for


def wanted(run: Run) -> Mapping[str, Any]:
    """`gpus` and `devices` of the next attempt: a resume's overrides replace the spec's."""
    over = {key: run.overrides[key] for key in ("gpus", "devices") if run.overrides.get(key)}
    asked = over or {key: run.spec.get(key) for key in ("gpus", "devices")}
    return {**asked, "place": run.spec.get("place")}


def is_elsewhere(run: Run) -> bool:
    """True if a cluster's scheduler decides when the run starts."""
    return bool(run.spec.get("place"))


def is_asked_for(run: Run) -> bool:
    """True if the run requests several devices, or all of them."""
    asked = wanted(run)
    return asked.get("gpus") == "all" or bool(rank_devices(asked))


def of_run(run: Run, found: Sequence[Device]) -> list[str]:
    """The devices, one per rank; empty for a run on one device."""
    asked = wanted(run)
    if asked.get("gpus") != "all":
        return rank_devices(asked)
    cards = all_gpus(found)
    return rank_devices(asked, cards[: most_that_share(len(cards), _units_of_run(run))])


def override(run: Run, changes: Mapping[str, Any]) -> None:
    """Store a resume's overrides; a choice of devices replaces an earlier one completely."""
    chooses = "gpus" in changes or "devices" in changes
    kept = {k: v for k, v in run.overrides.items() if not (chooses and k in ("gpus", "devices"))}
    run.overrides = {**kept, **changes}
    if chooses:
        run.device = device_column({"device": run.spec.get("device"), **wanted(run)})


def effective_spec(run: Run, changes: Mapping[str, Any]) -> dict[str, Any]:
    """The spec as a resume with these overrides would train it; to be validated."""
    devices, gpus = changes.get("devices") or [], changes.get("gpus") or 1
    rows = {**run.frozen, **run.overrides, **changes}.get("device_batch_size")
    count = len(devices) or (gpus if isinstance(gpus, int) else 1)
    lanes = run.frozen.get("lanes") or run.spec["numerics"].get("lanes")
    alone = devices[0] if len(devices) == 1 else run.spec.get("device")
    return {
        **run.spec,
        "gpus": gpus,
        "devices": devices if len(devices) > 1 else None,
        "device": alone if count == 1 and gpus != "all" else "auto",
        "batch": {**run.spec["batch"], **({"device_batch_size": rows} if rows else {})},
        # lanes that do not divide among the devices become one per device; the resume is
        # approximate
        "numerics": {**run.spec["numerics"], "lanes": None if lanes and lanes % count else lanes},
    }


def device_column(spec: Mapping[str, Any]) -> str:
    """Device by which a run is queued: its device, or the first of several; for a run on a cluster,
    the engine, which has its own queue."""
    if spec.get("place"):
        return spec["place"]["engine"]
    if spec.get("gpus") == "all":
        return ANY_GPU
    return (rank_devices(spec) or spec.get("devices") or [spec.get("device") or "auto"])[0]


def as_place(device: str, gang: Sequence[str]) -> str:
    """The devices of an execution, from its row."""
    return ",".join(gang or [device])


def held_by(attempt: Attempt, run: Run) -> tuple[str, ...]:
    """The devices that an open attempt holds."""
    named = attempt.execution.place.split(",")
    if len(named) > 1:
        return tuple(dict.fromkeys(named))
    if attempt.execution.launcher == torchrun.NAME:  # ordered before places named all devices
        return tuple(dict.fromkeys(rank_devices(run.spec)))
    return (attempt.device,)


def used_by(attempt: Attempt) -> list[str]:
    """One device for each rank of an attempt, as ordered; its one device as it reported it."""
    named = attempt.execution.place.split(",")
    return named if len(named) > 1 else [attempt.device]


def dividing_rows(run: Run, most: int = 256) -> list[int]:
    """Rows per pass, up to `most`, that divide a step of the run into whole passes of its lanes."""
    rows_of_a_step = run.batch_tokens // run.plan["shape"]["sequence_len"]
    num_lanes = lanes(run)
    return [
        r for r in range(1, min(rows_of_a_step, most) + 1) if rows_of_a_step % (r * num_lanes) == 0
    ]


def lanes(run: Run) -> int:
    """Number of lanes: fixed at the first start, of the spec before it."""
    return run.frozen.get("lanes") or RunSpec.model_validate(run.spec).lanes


def _units_of_run(run: Run) -> int:
    """Number of units the ranks share: the run's lanes, once they are frozen."""
    lanes = run.frozen.get("lanes") or run.spec.get("numerics", {}).get("lanes")
    if lanes:
        return int(lanes)
    rows = run.overrides.get("device_batch_size") or run.spec["batch"].get("device_batch_size")
    total = run.batch_tokens // run.spec["model"]["sequence_len"]
    return total // rows if isinstance(rows, int) else total
