"""nanochat's meta file: what it may say, and the run spec that follows from it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from trainer.contract.shape import ModelShape, shape_of
from trainer.contract.spec import ModelSpec
from trainer.interop import torchfile
from trainer.interop.errors import InteropError

MAX_META_BYTES = 1 << 20
# what nanochat writes where it never evaluated; every other constant that is no JSON is an error
UNMEASURED = re.compile(rb'("min_val_bpb":\s*)Infinity')
Count = Annotated[int, Field(ge=1, le=10**9)]
Index = Annotated[int, Field(ge=0, le=10**9)]
Precision = Literal["auto", "bf16", "fp32", "fp16"]


class Loose(BaseModel):
    """Keys that newer nanochats add are kept out of our way; NaN and infinity are errors."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False, strict=True)


class ModelConfig(Loose):
    sequence_len: Annotated[int, Field(ge=16, le=1_048_576)]
    vocab_size: Annotated[int, Field(ge=265, le=1_000_000)]
    n_layer: Annotated[int, Field(ge=1, le=128)]
    n_head: Annotated[int, Field(ge=1, le=1024)]
    n_kv_head: Annotated[int, Field(ge=1, le=1024)]
    n_embd: Annotated[int, Field(ge=24, le=65_536)]
    window_pattern: Annotated[str, Field(pattern=r"^[LSls]{1,64}$")] = "L"

    @model_validator(mode="after")
    def _heads_divide(self) -> ModelConfig:
        if self.n_embd % self.n_head or self.n_head % self.n_kv_head:
            raise ValueError("n_kv_head must divide n_head, and n_head must divide n_embd")
        return self

    def shape(self) -> ModelShape:
        return ModelShape(
            n_layer=self.n_layer,
            n_embd=self.n_embd,
            n_head=self.n_head,
            n_kv_head=self.n_kv_head,
            head_dim=self.n_embd // self.n_head,
            sequence_len=self.sequence_len,
            vocab_size=self.vocab_size,
            window_pattern=self.window_pattern.upper(),
        )


class UserConfig(Loose):
    """nanochat's command line; -1 is unset. Defaults are nanochat's own."""

    aspect_ratio: Annotated[int, Field(ge=1, le=1024)] = 64
    num_iterations: int = -1
    target_flops: float = -1.0
    target_param_data_ratio: float = 12.0
    embedding_lr: Annotated[float, Field(gt=0, le=100)] = 0.3
    unembedding_lr: Annotated[float, Field(gt=0, le=100)] = 0.008
    matrix_lr: Annotated[float, Field(gt=0, le=100)] = 0.02
    scalar_lr: Annotated[float, Field(gt=0, le=100)] = 0.5
    weight_decay: Annotated[float, Field(ge=0, le=10)] = 0.28
    warmup_steps: Index = 40
    warmdown_ratio: Annotated[float, Field(ge=0, le=1)] = 0.65
    final_lr_frac: Annotated[float, Field(ge=0, le=1)] = 0.05
    eval_every: int = 250
    eval_tokens: Annotated[int, Field(ge=1, le=10**15)] = 41_943_040
    core_metric_every: int = -1
    core_metric_max_per_task: int = 500
    sample_every: int = -1
    save_every: int = -1
    fp8: bool | None = False


class Cursor(Loose):
    """The batch already fetched ahead; its packing buffer was not saved."""

    pq_idx: Index
    rg_idx: Index
    epoch: Count = 1


class LoopState(Loose):
    min_val_bpb: float | None = None
    smooth_train_loss: float = 0.0
    total_training_time: Annotated[float, Field(ge=0)] = 0.0


class Meta(Loose):
    step: Index
    val_bpb: float | None = None
    model_config_: ModelConfig = Field(alias="model_config")
    user_config: UserConfig
    device_batch_size: Count
    max_seq_len: Count
    total_batch_size: Count
    dataloader_state_dict: Cursor
    loop_state: LoopState = LoopState()

    @model_validator(mode="after")
    def _consistent(self) -> Meta:
        if self.max_seq_len != self.model_config_.sequence_len:
            raise ValueError("max_seq_len is not the model's sequence_len")
        if self.total_batch_size % (self.device_batch_size * self.max_seq_len):
            raise ValueError("total_batch_size is no multiple of device_batch_size x max_seq_len")
        return self

    def shape(self) -> ModelShape:
        return self.model_config_.shape()


def read_meta(path: Path, root: Path) -> tuple[Meta, dict[str, Any]]:
    """(the validated meta, the whole file as it is). Raises InteropError."""
    torchfile.check_file(path, root, MAX_META_BYTES)
    try:
        text = UNMEASURED.sub(rb"\1null", path.read_bytes())
        raw = json.loads(text, parse_constant=_no_constants)
        if not isinstance(raw, dict):
            raise ValueError("it is not an object")
        return Meta.model_validate(raw), raw
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InteropError(path, f"{where or 'the whole'}: {first['msg']}") from None
    except (ValueError, RecursionError) as error:
        raise InteropError(path, f"is no valid JSON meta file ({str(error)[:200]})") from None


def spec_from_meta(
    meta: Meta,
    *,
    name: str,
    corpus: Path | str,
    tokenizer: Path | str,
    precision: Precision = "auto",
) -> dict[str, Any]:
    """A complete run-spec body that plans what nanochat planned.

    corpus: the folder of parquet shards. tokenizer: the folder of the imported tokenizer.
    precision: of the tables that were found. Raises InteropError when nanochat's dials cannot give
    the shape that meta states.
    """
    user, shape = meta.user_config, meta.shape()
    model = {
        "depth": shape.n_layer,
        "aspect_ratio": user.aspect_ratio,
        "head_dim": shape.head_dim,
        "n_kv_head": None if shape.n_kv_head == shape.n_head else shape.n_kv_head,
        "sequence_len": shape.sequence_len,
        "window_pattern": shape.window_pattern,
        "vocab_size": shape.vocab_size,
    }
    if shape_of(ModelSpec.model_validate(model)) != shape:
        raise InteropError(
            f"meta of step {meta.step}",
            f"depth {shape.n_layer} x aspect_ratio {user.aspect_ratio} does not give "
            f"n_embd {shape.n_embd} with {shape.n_head} heads",
        )
    return {
        "name": name,
        "model": model,
        "data": {
            "source": "parquet",
            "path": str(corpus),
            "tokenizer": {"path": str(tokenizer)},
            "packing": "best_fit",
        },
        "horizon": _horizon(user),
        "batch": {"tokens": meta.total_batch_size, "device_batch_size": meta.device_batch_size},
        "optimizer": {
            "matrix_lr": user.matrix_lr,
            "embedding_lr": user.embedding_lr,
            "unembedding_lr": user.unembedding_lr,
            "scalar_lr": user.scalar_lr,
            "weight_decay": user.weight_decay,
        },
        "schedule": {
            "warmup_steps": user.warmup_steps,
            "warmdown_ratio": user.warmdown_ratio,
            "warmdown_shape": "linear",
            "final_lr_frac": user.final_lr_frac,
        },
        "numerics": {"precision": precision},
        "evaluate": _evaluate(user),
        "checkpoint": {"every_steps": _cadence(user.save_every)},
    }


def _horizon(user: UserConfig) -> dict[str, Any]:
    """nanochat's order of precedence: steps, FLOPs, data:param ratio."""
    if user.num_iterations > 0:
        return {"steps": user.num_iterations}
    if user.target_flops > 0:
        return {"flops": user.target_flops}
    return {"data_param_ratio": user.target_param_data_ratio}


def _evaluate(user: UserConfig) -> dict[str, Any]:
    most = user.core_metric_max_per_task
    return {
        "bpb_every": _cadence(user.eval_every),
        "eval_tokens": user.eval_tokens,
        "core_every": _cadence(user.core_metric_every),
        "core_max_per_task": most if most > 0 else None,
        "sample_every": _cadence(user.sample_every),
    }


def _cadence(every: int) -> int | None:
    return every if every > 0 else None


def _no_constants(text: str) -> float:
    raise ValueError(f"{text} is no JSON number")
