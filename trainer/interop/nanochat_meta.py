"""Parses nanochat's meta file: the fields of each generation."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from trainer.contract.recipe import Architecture
from trainer.contract.shape import ModelShape
from trainer.interop import torchfile
from trainer.interop.errors import InteropError

MAX_META_BYTES = 1_000_000
# written by nanochat if it never evaluated; every other constant that is not JSON is an error
UNMEASURED = re.compile(rb'("min_val_bpb":\s*)Infinity')
Count = Annotated[int, Field(ge=1, le=10**9)]
Index = Annotated[int, Field(ge=0, le=10**9)]


class Loose(BaseModel):
    """Base model: ignores keys of newer nanochat versions; NaN and infinity are errors."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False, strict=True)


class ModelConfig(Loose):
    sequence_len: Annotated[int, Field(ge=16, le=1_048_576)]
    vocab_size: Annotated[int, Field(ge=265, le=1_000_000)]
    n_layer: Annotated[int, Field(ge=1, le=128)]
    n_head: Annotated[int, Field(ge=1, le=1024)]
    n_kv_head: Annotated[int, Field(ge=1, le=1024)]
    n_embd: Annotated[int, Field(ge=12, le=65_536)]
    window_pattern: Annotated[str, Field(pattern=r"^[LSls]{1,64}$")] = "L"
    short_seq_len: Annotated[int, Field(ge=1, le=1_048_576)] | None = None

    @model_validator(mode="after")
    def _heads_divide(self) -> ModelConfig:
        if self.n_embd % self.n_head or self.n_head % self.n_kv_head:
            raise ValueError("n_kv_head must divide n_head, and n_head must divide n_embd")
        return self

    def shape(self, traits: Architecture) -> ModelShape:
        return ModelShape(
            n_layer=self.n_layer,
            n_embd=self.n_embd,
            n_head=self.n_head,
            n_kv_head=self.n_kv_head,
            head_dim=self.n_embd // self.n_head,
            sequence_len=self.sequence_len,
            vocab_size=self.vocab_size,
            window_pattern=self.window_pattern.upper(),
            traits=traits,
        )


class UserConfig(Loose):
    """nanochat's command line; -1 is unset. Defaults are nanochat's own.

    Its keys distinguish the generations (`model_fields_set` has only those defined here).
    """

    aspect_ratio: Annotated[int, Field(ge=1, le=1024)] | None = None
    num_shards: Annotated[int, Field(ge=-1, le=1_000_000)] = -1
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
    """v1's data cursor: the batch already prefetched; its packing buffer was not saved."""

    pq_idx: Index
    rg_idx: Index
    epoch: Count = 1


class LoopState(Loose):
    min_val_bpb: float | None = None
    smooth_train_loss: float = 0.0
    total_training_time: Annotated[float, Field(ge=0)] = 0.0


class NanochatMeta(Loose):
    """A checkpoint's meta file. Fields missing in a weights-only checkpoint are None."""

    step: Index
    val_bpb: float | None = None
    model_config_: ModelConfig = Field(alias="model_config")
    user_config: UserConfig = UserConfig()
    device_batch_size: Count | None = None
    max_seq_len: Count | None = None
    total_batch_size: Count | None = None
    dataloader_state_dict: Cursor | None = None
    dataloader_row: Annotated[int, Field(ge=0, le=10**15)] | None = None
    loop_state: LoopState = LoopState()

    @model_validator(mode="after")
    def _consistent(self) -> NanochatMeta:
        length = self.model_config_.sequence_len
        if self.max_seq_len not in (None, length):
            raise ValueError("max_seq_len is not the model's sequence_len")
        rows = self.device_batch_size or 1
        if self.total_batch_size and self.total_batch_size % (rows * length):
            raise ValueError(
                "total_batch_size is not a multiple of device_batch_size x max_seq_len"
            )
        if self.dataloader_state_dict and self.dataloader_row is not None:
            raise ValueError("it has two data cursors, dataloader_state_dict and dataloader_row")
        return self

    def shape(self, traits: Architecture) -> ModelShape:
        return self.model_config_.shape(traits)

    @property
    def training_fields_missing(self) -> list[str]:
        """Fields that a run needs to continue but this file lacks."""
        found = [
            name
            for name in ("device_batch_size", "total_batch_size")
            if getattr(self, name) is None
        ]
        if self.dataloader_state_dict is None and self.dataloader_row is None:
            found.append("dataloader_state_dict or dataloader_row")
        return found


def read_meta(path: Path, root: Path) -> tuple[NanochatMeta, dict[str, Any]]:
    """Read a meta file: (validated meta, unchanged content). Raises InteropError."""
    torchfile.check_file(path, root, MAX_META_BYTES)
    try:
        text = UNMEASURED.sub(rb"\1null", path.read_bytes())
        raw = json.loads(text, parse_constant=_no_constants)
        if not isinstance(raw, dict):
            raise ValueError("it is not an object")
        return NanochatMeta.model_validate(raw), raw
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InteropError(path, f"{where or 'the whole'}: {first['msg']}") from None
    except (ValueError, RecursionError) as error:
        raise InteropError(path, f"is not a valid JSON meta file ({str(error)[:200]})") from None


def _no_constants(text: str) -> float:
    raise ValueError(f"{text} is not a JSON number")
