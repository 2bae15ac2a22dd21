"""Frozen choices: made at a run's first start and part of its fingerprint.

Micro-batch, compile, threads, precision, determinism and the peak that MFU refers to. Later
attempts read them back; `overrides` of a resume replace single ones, and are reported.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict

from trainer.contract.durable import write_durably
from trainer.contract.events import Probed
from trainer.contract.lanes import lanes_for
from trainer.contract.orders import AttemptOrder
from trainer.contract.plan import Hyperparameters
from trainer.contract.rundir import RunDir, read_document
from trainer.contract.shape import ModelShape, shape_of
from trainer.runtime import compiler
from trainer.runtime import device as devices

COMPILE_WORTH_SECONDS = 1800.0


class Choices(BaseModel):
    """Choices frozen for this run on this machine.

    attention: {window: backend}, relu2: tile of traind's own kernel, if requested; both were
    autotuned by the first attempt, empty until then. lanes: number of groups of micro-batches that
    are summed separately. probed: measurements of the batch size probe, if `auto` ran it; for
    information only.
    """

    model_config = ConfigDict(extra="forbid")

    device_batch_size: int
    compile: bool
    threads: int
    deterministic: bool
    compute_dtype: str
    fp8: bool = False
    peak_flops: float
    peak_source: str
    attention: dict[str, str] = {}
    relu2: str | None = None
    lanes: int = 1
    probed: list[Probed] = []

    @property
    def dtype(self) -> torch.dtype:
        return getattr(torch, self.compute_dtype)


# (shape, rows to try, ascending, rows of a step, device, compute dtype, fp8, hyperparameters)
# -> the rows to use, and the results of all that were tried
Probe = Callable[
    [ModelShape, list[int], int, torch.device, torch.dtype, bool, Hyperparameters],
    tuple[int, list[Probed]],
]


def choose(order: AttemptOrder, run_dir: RunDir, device: torch.device, probe: Probe) -> Choices:
    """The run's frozen choices, made now if there are none. Overrides are applied on top."""
    if order.spec.numerics.precision == "fp8":
        devices.require_fp8(device)  # at every start: it may be another GPU by now
    frozen = _read(run_dir)
    if frozen is None:
        frozen = _choose(order, device, probe)
        write_durably(run_dir.frozen, frozen.model_dump_json(indent=1).encode())
    rows, compiled = order.overrides.get("device_batch_size"), order.overrides.get("compile")
    changed: dict[str, Any] = {}
    if rows is not None:
        changed["device_batch_size"] = rows
    if compiled is not None:
        changed["compile"] = compiled
    if order.overrides.get("attention") is not None:
        windows = dict.fromkeys(shape_of(order.spec.model).windows)
        changed["attention"] = {str(w): order.overrides["attention"] for w in windows}
    choices = frozen.model_copy(update=changed)
    devices.configure(device, threads=choices.threads, deterministic=choices.deterministic)
    return choices


def freeze_winners(
    run_dir: RunDir, choices: Choices, attention: dict[str, str], relu2: str | None
) -> Choices:
    """Record the kernels that the first attempt chose; later attempts keep theirs."""
    found = {"attention": attention, "relu2": relu2}
    frozen = _read(run_dir)
    if frozen is not None and not frozen.attention:
        frozen = frozen.model_copy(update=found)
        write_durably(run_dir.frozen, frozen.model_dump_json(indent=1).encode())
    return choices.model_copy(update=found)


def freeze_uncompiled(run_dir: RunDir) -> None:
    """Freeze compile off: bits differ between compiled and uncompiled steps, so later attempts
    must not try again."""
    frozen = _read(run_dir)
    if frozen is not None and frozen.compile:
        frozen = frozen.model_copy(update={"compile": False})
        write_durably(run_dir.frozen, frozen.model_dump_json(indent=1).encode())


_REMEDY = "Restore a copy of it, or remove it and resume: the choices are then made again"


def _read(run_dir: RunDir) -> Choices | None:
    try:
        return read_document(run_dir.frozen, Choices, _REMEDY)
    except FileNotFoundError:
        return None


def _choose(order: AttemptOrder, device: torch.device, probe: Probe) -> Choices:
    numerics = order.spec.numerics
    deterministic = numerics.deterministic
    if deterministic is None:
        deterministic = device.type == "cpu"
    threads = numerics.threads or _default_threads(order.num_ranks)
    devices.configure(device, threads=threads, deterministic=deterministic)
    fp8 = numerics.precision == "fp8"
    dtype = devices.compute_dtype(device, numerics.precision)
    peak = devices.peak(device, dtype, measured=numerics.peak == "measured")
    lanes = lanes_for(order.num_ranks, numerics.lanes)
    rows, probed = _rows(order, device, dtype, fp8, probe, lanes)
    return Choices(
        device_batch_size=rows,
        compile=_compile(order, device),
        threads=threads,
        deterministic=deterministic,
        compute_dtype=str(dtype).removeprefix("torch."),
        fp8=fp8,
        peak_flops=peak.value,
        peak_source=peak.source,
        lanes=lanes,
        probed=probed,
    )


def _default_threads(ranks: int) -> int:
    """Default CPU threads: torch's, but at most the CPUs available to this process, shared by the
    ranks of this machine."""
    if ranks > 1 and hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)) // ranks)
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    return min(torch.get_num_threads(), allowed or torch.get_num_threads())


def _rows(
    order: AttemptOrder,
    device: torch.device,
    dtype: torch.dtype,
    fp8: bool,
    probe: Probe,
    lanes: int,
) -> tuple[int, list[Probed]]:
    asked = order.spec.batch.device_batch_size
    if isinstance(asked, int):
        return asked, []
    shape = shape_of(order.spec.model)
    total = order.plan.batch.tokens // shape.sequence_len
    divisors = [r for r in range(1, min(total, 64) + 1) if total % (r * lanes) == 0]
    return probe(shape, divisors, total, device, dtype, fp8, order.plan.hyperparameters)


def _compile(order: AttemptOrder, device: torch.device) -> bool:
    """True if compiling, which takes minutes once, pays off: on a GPU; on a CPU from 30 min."""
    asked = order.spec.numerics.compile
    if isinstance(asked, bool):
        return asked
    if device.type == "cuda":
        return True  # if it fails, the step reports it and runs without
    if compiler.missing(device):
        return False
    return order.plan.eta.training > COMPILE_WORTH_SECONDS
