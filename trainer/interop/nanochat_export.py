"""Writing nanochat's own layout, so that its scripts can go on from a run of ours (RECIPE 8)."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainer.contract.plan import Hyperparameters
from trainer.contract.shape import ModelShape
from trainer.contract.spec import RunSpec
from trainer.interop.nanochat import paths
from trainer.model import parameters
from trainer.optim.muon import BETA2, POLAR_EXPRESS
from trainer.optim.optimizer import ADAMW_STEP


@dataclass(frozen=True)
class Rates:
    """What the schedule said at the last step done: nanochat keeps it in its groups."""

    lr_multiplier: float
    momentum: float
    weight_decay: float


def write_nanochat(
    base_dir: Path | str,
    tag: str,
    step: int,
    model_state: Mapping[str, Tensor],
    optimizer_state: Mapping[str, Tensor],
    meta: Mapping[str, Any],
    *,
    shape: ModelShape,
    hyper: Hyperparameters,
    rates: Rates,
) -> list[Path]:
    """Model, optimizer and meta of one checkpoint; returns the files, each complete or not there.

    meta: see `meta_for`, or the one that an import kept.
    """
    files = paths(Path(base_dir), tag, step)
    files.model.parent.mkdir(parents=True, exist_ok=True)
    model = {name: _on_host(tensor) for name, tensor in model_state.items()}
    _save(files.model, model)
    _save(files.optimizer, optimizer_for_nanochat(optimizer_state, shape, hyper, rates))
    _replace(files.meta, json.dumps({**meta, "step": step}, indent=2).encode())
    return [files.model, files.optimizer, files.meta]


def meta_for(
    spec: RunSpec,
    shape: ModelShape,
    *,
    step: int,
    horizon_steps: int,
    total_batch_size: int,
    device_batch_size: int,
    cursor: Mapping[str, int],
    val_bpb: float | None = None,
    smooth_train_loss: float = 0.0,
    training_seconds: float = 0.0,
) -> dict[str, Any]:
    """nanochat's meta file for a run of ours. cursor: pq_idx, rg_idx, epoch last read."""
    opt, schedule, evaluate = spec.optimizer, spec.schedule, spec.evaluate
    return {
        "step": step,
        "val_bpb": val_bpb,
        "model_config": {
            "sequence_len": shape.sequence_len,
            "vocab_size": shape.vocab_size,
            "n_layer": shape.n_layer,
            "n_head": shape.n_head,
            "n_kv_head": shape.n_kv_head,
            "n_embd": shape.n_embd,
            "window_pattern": shape.window_pattern,
        },
        "user_config": {
            "run": spec.name,
            "device_type": "",
            "fp8": spec.numerics.precision == "fp8",
            "fp8_recipe": "tensorwise",
            "depth": spec.model.depth,
            "aspect_ratio": spec.model.aspect_ratio,
            "head_dim": spec.model.head_dim,
            "max_seq_len": shape.sequence_len,
            "window_pattern": shape.window_pattern,
            "num_iterations": horizon_steps,
            "target_flops": -1.0,
            "target_param_data_ratio": 12,
            "device_batch_size": device_batch_size,
            "total_batch_size": total_batch_size,
            "embedding_lr": opt.embedding_lr,
            "unembedding_lr": opt.unembedding_lr,
            "weight_decay": opt.weight_decay,
            "matrix_lr": opt.matrix_lr,
            "scalar_lr": opt.scalar_lr,
            "warmup_steps": schedule.warmup_steps,
            "warmdown_ratio": schedule.warmdown_ratio,
            "final_lr_frac": schedule.final_lr_frac,
            "resume_from_step": -1,
            "eval_every": _or_unset(evaluate.bpb_every),
            "eval_tokens": evaluate.eval_tokens,
            "core_metric_every": _or_unset(evaluate.core_every),
            "core_metric_max_per_task": evaluate.core_max_per_task or -1,
            "sample_every": _or_unset(evaluate.sample_every),
            "save_every": spec.checkpoint.every_steps or -1,
            "model_tag": spec.name,
        },
        "device_batch_size": device_batch_size,
        "max_seq_len": shape.sequence_len,
        "total_batch_size": total_batch_size,
        "dataloader_state_dict": dict(cursor),
        "loop_state": {
            "min_val_bpb": val_bpb,
            "smooth_train_loss": smooth_train_loss,
            "total_training_time": training_seconds,
        },
    }


def optimizer_for_nanochat(
    state: Mapping[str, Tensor], shape: ModelShape, hyper: Hyperparameters, rates: Rates
) -> dict[str, Any]:
    """nanochat's optimizer state dict: parameters numbered through the groups in its order."""
    numbered: dict[int, dict[str, Any]] = {}
    groups: list[dict[str, Any]] = []
    first = 0
    for group in parameters.adam_groups(shape):
        numbers = list(range(first, first + len(group.names)))
        for number, name in zip(numbers, group.names, strict=True):
            numbered[number] = {
                "step": int(state[ADAMW_STEP]),
                "exp_avg": _on_host(state[f"adamw.{name}.exp_avg"]),
                "exp_avg_sq": _on_host(state[f"adamw.{name}.exp_avg_sq"]),
            }
        groups.append(_adam_group(group, hyper, rates, numbers))
        first += len(numbers)
    for group in parameters.muon_groups(shape):
        numbers = list(range(first, first + len(group.names)))
        numbered[first] = {
            "momentum_buffer": _on_host(state[f"muon.{group.key}.momentum"]),
            "second_momentum_buffer": _on_host(state[f"muon.{group.key}.second_momentum"]),
        }
        groups.append(_muon_group(hyper, rates, numbers))
        first += len(numbers)
    return {"state": numbered, "param_groups": groups}


def _adam_group(
    group: parameters.AdamGroup, hyper: Hyperparameters, rates: Rates, numbers: list[int]
) -> dict[str, Any]:
    peak = group.lr(hyper)
    beta1, beta2, weight_decay = group.settings(hyper)
    return {
        "kind": "adamw",
        "lr": peak * rates.lr_multiplier,
        "betas": (beta1, beta2),
        "eps": 1e-10,
        "weight_decay": weight_decay,
        "initial_lr": peak,
        "params": numbers,
    }


def _muon_group(hyper: Hyperparameters, rates: Rates, numbers: list[int]) -> dict[str, Any]:
    return {
        "kind": "muon",
        "lr": hyper.matrix_lr * rates.lr_multiplier,
        "momentum": rates.momentum,
        "ns_steps": len(POLAR_EXPRESS),
        "beta2": BETA2,
        "weight_decay": rates.weight_decay,
        "initial_lr": hyper.matrix_lr,
        "params": numbers,
    }


def _or_unset(every: int | str | None) -> int:
    """nanochat says "never" and "at the end" alike: -1."""
    return every if isinstance(every, int) else -1


def _on_host(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu").clone(memory_format=torch.contiguous_format)


def _save(path: Path, content: Any) -> None:
    beside = _beside(path)
    torch.save(content, beside)
    _settle(beside, path)


def _replace(path: Path, content: bytes) -> None:
    beside = _beside(path)
    beside.write_bytes(content)
    _settle(beside, path)


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}")


def _settle(beside: Path, path: Path) -> None:
    """Durable first, then under its name: a torn file never has it."""
    with beside.open("rb") as file:
        os.fsync(file.fileno())
    beside.replace(path)
