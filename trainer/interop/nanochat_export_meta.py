"""Writes nanochat's meta file, in either generation."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trainer.contract.shape import ModelShape
from trainer.contract.spec import RunSpec
from trainer.interop.nanochat import OUR_KEY
from trainer.interop.nanochat_export import ExportGeneration, short_seq_len


@dataclass(frozen=True)
class ExportState:
    """Position of a run. cursor: the fields of nanochat's data cursor. updates: of the optimizer,
    fewer than steps where it restarted at imported weights."""

    step: int
    horizon_steps: int
    total_batch_size: int
    device_batch_size: int
    cursor: Mapping[str, Any]
    updates: int | None = None
    val_bpb: float | None = None
    smooth_train_loss: float = 0.0
    training_seconds: float = 0.0


def meta_for(
    spec: RunSpec, shape: ModelShape, at: ExportState, generation: ExportGeneration = "v1"
) -> dict[str, Any]:
    """Content of the meta file. at.cursor: last read {pq_idx, rg_idx, epoch} in v1, {row} in v2."""
    own: dict[str, Any] = {}
    if at.updates not in (None, at.step):
        own[OUR_KEY] = {"optimizer_updates": at.updates}
    cursor: dict[str, Any] = {"dataloader_state_dict": dict(at.cursor)}
    if generation == "v2":
        cursor = {"dataloader_row": at.cursor["row"]}
    return {
        "step": at.step,
        "val_bpb": at.val_bpb,
        "model_config": _model_config(shape, generation),
        "user_config": _user_config(spec, shape, at, generation),
        "device_batch_size": at.device_batch_size,
        "max_seq_len": shape.sequence_len,
        "total_batch_size": at.total_batch_size,
        **cursor,
        "loop_state": {
            "min_val_bpb": at.val_bpb,
            "smooth_train_loss": at.smooth_train_loss,
            "total_training_time": at.training_seconds,
        },
        **own,
    }


def experiment_meta(name: str, dataset: str) -> dict[str, Any]:
    """v2's meta.json of an experiment, without a git commit."""
    return {
        "name": name,
        "created": time.strftime("%Y-%m-%dT%H:%M:%S"),
        "git_commit": "",
        "git_branch": "",
        "git_dirty": False,
        "dataset": dataset,
    }


def _model_config(shape: ModelShape, generation: ExportGeneration) -> dict[str, Any]:
    config: dict[str, Any] = {
        "sequence_len": shape.sequence_len,
        "vocab_size": shape.vocab_size,
        "n_layer": shape.n_layer,
        "n_head": shape.n_head,
        "n_kv_head": shape.n_kv_head,
        "n_embd": shape.n_embd,
        "window_pattern": shape.window_pattern,
    }
    return config | ({"short_seq_len": short_seq_len(shape)} if generation == "v2" else {})


def _user_config(
    spec: RunSpec, shape: ModelShape, at: ExportState, generation: ExportGeneration
) -> dict[str, Any]:
    """nanochat's command line, in the order of its flags."""
    opt, schedule, evaluate = spec.optimizer, spec.schedule, spec.evaluate
    is_v2 = generation == "v2"
    cadences = {
        "core_metric_every": _or_unset(evaluate.core_every),
        "core_metric_max_per_task": evaluate.core_max_per_task or -1,
        "sample_every": _or_unset(evaluate.sample_every),
    }
    shards = {"num_shards": spec.data.num_shards or -1, "short_seq_len": short_seq_len(shape)}
    return {
        "run": spec.name,
        "device_type": "",
        "fp8": spec.numerics.precision == "fp8",
        **({} if is_v2 else {"fp8_recipe": "tensorwise"}),
        "depth": spec.model.depth,
        "aspect_ratio": spec.model.aspect_ratio,
        "head_dim": spec.model.head_dim,
        "max_seq_len": shape.sequence_len,
        **(shards if is_v2 else {}),
        "window_pattern": shape.window_pattern,
        "num_iterations": at.horizon_steps,
        "target_flops": -1.0,
        "target_param_data_ratio": 12,
        "device_batch_size": at.device_batch_size,
        "total_batch_size": at.total_batch_size,
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
        **({} if is_v2 else cadences),
        "save_every": spec.checkpoint.every_steps or -1,
        "model_tag": spec.name,
    }


def _or_unset(every: int | str | None) -> int:
    """nanochat writes -1 both for "never" and "at the end"."""
    return every if isinstance(every, int) else -1
