"""Loads a run's model from a checkpoint, for jobs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from trainer.checkpoint import store
from trainer.contract.orders import JobOrder
from trainer.contract.plan import Plan
from trainer.contract.rundir import Damaged, RunDir, read_document
from trainer.contract.shape import shape_of
from trainer.contract.spec import RunSpec
from trainer.data import prepared, tokenizer
from trainer.data.prepared import PreparedData
from trainer.data.tokenizer import Tokenizer
from trainer.model.gpt import GPT
from trainer.runtime import device, malloc


@dataclass(frozen=True)
class Loaded:
    """A loaded model. frozen: the run's frozen choices (train/frozen_choices.py), {} if no attempt
    made any. rows: of a micro-batch."""

    spec: RunSpec
    plan: Plan
    data: PreparedData
    tokenizer: Tokenizer
    model: GPT
    path: Path
    manifest: store.Manifest
    rows: int
    frozen: dict[str, Any]


def load(order: JobOrder) -> Loaded:
    """Load the model at params["checkpoint"] (a name the server resolved); verifies it first.

    On the CPU everything is float32 except tensors that the checkpoint stores otherwise.
    Raises checkpoint.Bad, NoSuchDevice, FileNotFoundError.
    """
    assert order.run_dir is not None
    run_dir = RunDir(Path(order.run_dir))
    remedy = "Restore a copy of it; the next resume or extend of the run writes it again"
    spec = read_document(run_dir.spec, RunSpec, remedy)
    plan = read_document(run_dir.plan, Plan, remedy)
    data = prepared.read(run_dir.data, Path(order.data_dir))
    path = run_dir.checkpoints / str(order.params["checkpoint"])
    manifest = store.require(path, run_dir.root.name)
    where = device.resolve(order.device)
    if where.type == "cpu":
        malloc.keep_freed_memory()  # CORE 1.1 times as fast
    frozen = _frozen(run_dir)
    model = GPT(shape_of(spec.model), compute_dtype=_dtype(frozen), device=where)
    model.load_state_dict(load_file(path / store.MODEL))
    model.eval()
    return Loaded(
        spec=spec,
        plan=plan,
        data=data,
        tokenizer=tokenizer.load(Path(data.tokenizer_dir)),
        model=model,
        path=path,
        manifest=manifest,
        rows=int(frozen.get("device_batch_size", plan.batch.device_batch_size)),
        frozen=frozen,
    )


def _frozen(run_dir: RunDir) -> dict[str, Any]:
    try:
        return dict(json.loads(run_dir.frozen.read_bytes()))
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError) as error:
        raise Damaged(f"{run_dir.frozen} is damaged ({error}). Restore a copy of it") from None


def _dtype(frozen: dict[str, Any]) -> torch.dtype:
    """The run's own compute dtype, so that tables keep their storage and values are comparable."""
    return getattr(torch, frozen.get("compute_dtype", "float32"))
