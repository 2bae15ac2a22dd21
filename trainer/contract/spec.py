"""The run spec: what a user asks for, with every default said once.

`resolve(body)` lays the body over its preset and the preset over the defaults, then validates.
Unknown keys are errors everywhere; `None` means off.
"""

from __future__ import annotations

import copy
import math
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from trainer.contract.recipe import DEFAULT, MuonName, RecipeName, TableStorage, architecture_of
from trainer.contract.splits import kind_of
from trainer.contract.strict_types import of_their_kind

FP8_TILE = 16
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
MAX_STEPS = 10**9
MAX_STREAMS = 1024
SOURCES_WITH_A_PATH = ("text", "jsonl", "parquet", "nanochat_packed")
AttentionBackend = Literal["sdpa", "masked", "blocked", "varlen", "flex", "flash3"]


class Strict(BaseModel):
    """A model that knows its keys: anything else is an error, and so are NaN and infinity."""

    model_config = ConfigDict(
        extra="forbid", allow_inf_nan=False, validate_default=True, use_attribute_docstrings=True
    )
    _kinds = of_their_kind


def _not_an_id(name: str) -> str:
    if name.startswith("run_"):
        raise ValueError("a name must not begin with 'run_', which is how ids begin")
    return name


Name = Annotated[
    str, StringConstraints(pattern=NAME_PATTERN, max_length=64), AfterValidator(_not_an_id)
]
Steps = Annotated[int, Field(ge=1, le=MAX_STEPS)]
Tokens = Annotated[int, Field(ge=1, le=10**15)]
Frac = Annotated[float, Field(ge=0.0, le=1.0)]
LearningRate = Annotated[float, Field(ge=1e-12, le=100.0)]
Text = Annotated[str, StringConstraints(max_length=4096)]
ShortText = Annotated[str, StringConstraints(min_length=1, max_length=256)]


def do_not_fit(place: tuple[str, ...], sentence: str) -> PydanticCustomError:
    """An error that two fields make together, said of the one at `place`."""
    return PydanticCustomError("do_not_fit", "{sentence}", {"sentence": sentence, "at": place})


class ModelSpec(Strict):
    """One dial, `depth`; the rest has nanochat's defaults.

    recipe: whose architecture it is (`recipe.py`). smear, short_window (tokens back of an `S`
    layer) and tables (dtype they are stored in) replace single traits of it.
    """

    recipe: RecipeName = DEFAULT
    """Generation of nanochat whose architecture and initial values the model has."""
    depth: Annotated[int, Field(ge=1, le=128)] = 12
    """Number of transformer layers; the width follows as depth × aspect_ratio."""
    aspect_ratio: Annotated[int, Field(ge=1, le=1024)] = 64
    """Width per layer: model width = depth × aspect_ratio, rounded up to head_dim."""
    head_dim: Annotated[int, Field(ge=8, le=512, multiple_of=2)] = 128
    """Channels per attention head."""
    n_kv_head: Annotated[int, Field(ge=1, le=512)] | None = None
    """Key/value heads for grouped-query attention; null is one per query head."""
    sequence_len: Annotated[int, Field(ge=16, le=1_048_576)] = 2048
    """Tokens per training row (context length)."""
    window_pattern: Annotated[str, StringConstraints(pattern=r"^[LS]{1,64}$")] = "L"
    """Attention window per layer, tiled over the layers: L full, S short; the last is L."""
    vocab_size: Annotated[int, Field(ge=265, le=1_000_000)] = 32_768
    """Tokens in the vocabulary, special tokens included; padded to a multiple of 64 inside."""
    smear: bool | None = None
    """Whether a position receives part of the previous embedding; null is the recipe's choice."""
    short_window: Annotated[int, Field(ge=1, le=1_048_576)] | None = None
    """Tokens an S layer looks back; null is the recipe's rule."""
    tables: TableStorage | None = None
    """Dtype in which embedding tables and their moments are stored; null is the recipe's choice."""

    @model_validator(mode="after")
    def _heads_divide(self) -> ModelSpec:
        width = -(-self.depth * self.aspect_ratio // self.head_dim) * self.head_dim
        heads = width // self.head_dim
        if self.n_kv_head is not None and heads % self.n_kv_head:
            raise do_not_fit(
                ("n_kv_head",),
                f"n_kv_head must divide the number of heads: {heads} heads "
                f"(width {width} / head_dim {self.head_dim}) with n_kv_head {self.n_kv_head}",
            )
        gate, least = ("smear", 24) if architecture_of(self).smear else ("value embedding", 12)
        if width < least:
            raise do_not_fit(
                ("depth",),
                f"depth {self.depth} x aspect_ratio {self.aspect_ratio} gives width {width}; "
                f"the {gate} gate reads {least} channels, so the width must be at least {least}",
            )
        return self


class TokenizerSpec(Strict):
    """Train one on this corpus (default), load one from a path, or take another run's."""

    train: bool | None = None
    """Train a byte-level BPE tokenizer on this corpus (the default)."""
    path: Text | None = None
    """Folder with tokenizer.pkl and token_bytes.pt to load instead."""
    run: Text | None = None
    """Run (name or id) whose tokenizer is reused."""

    @model_validator(mode="after")
    def _exactly_one(self) -> TokenizerSpec:
        given = [self.path is not None, self.run is not None, bool(self.train)]
        if sum(given) == 0 and self.train is None:
            self.train = True
        elif sum(given) != 1:
            raise ValueError("give exactly one of train: true, path, run")
        return self


class DataSpec(Strict):
    """Where the text comes from. `path` for text, jsonl, parquet, nanochat_packed; `name` for hf.

    nanochat_packed: nanochat's pre-packed train_NNNNN.bin and val_NNNNN.bin, whose rows are read as
    they are. num_shards: only the first N train shards of those. Their tokenizer is the one in
    `tokenizer/` below the path unless another is named.

    streams: independent streams of row groups that are packed separately, one for each process of
    a nanochat run; a step takes the same number of rows from each.
    """

    source: Literal["builtin", "text", "jsonl", "parquet", "hf", "nanochat_packed"] = "builtin"
    """Kind of corpus: the built-in demo text, files at `path`, or a Hugging Face data set."""
    path: Text | None = None
    """File or folder of the corpus on this machine."""
    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]+/[A-Za-z0-9._-]+$")] | None = (
        None
    )
    """Hugging Face data set as owner/name, for source hf."""
    config: ShortText | None = None
    """Which config of a data set that has several; "*" takes every one."""
    split: ShortText | None = None
    """Which split to train on where several are left; never one for validation or test."""
    column: ShortText | None = None
    """Parquet column or JSON key that holds the text; null is `text`."""
    max_shards: Annotated[int, Field(ge=1, le=1_000_000)] | Literal["auto"] | None = None
    """Upper limit on downloaded shards; auto derives it from the horizon; null takes all."""
    tokenizer: TokenizerSpec = TokenizerSpec()
    """Where the tokenizer comes from."""
    packing: Literal["best_fit", "lossless"] = "best_fit"
    """best_fit packs as nanochat does and discards cut remainders; lossless keeps them."""
    num_shards: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    """First N training shards of a packed corpus; null takes all that are present."""
    streams: Annotated[int, Field(ge=1, le=MAX_STREAMS)] = 1
    """Independent streams of row groups, as an imported run on N GPUs read them."""

    @model_validator(mode="after")
    def _source_has_its_place(self) -> DataSpec:
        if self.source in SOURCES_WITH_A_PATH and not self.path:
            raise ValueError(f"source '{self.source}' needs a path")
        if self.source == "hf" and not self.name:
            raise ValueError("source 'hf' needs a name such as 'owner/dataset'")
        if self.source == "builtin" and (self.path or self.name):
            raise ValueError("source 'builtin' takes neither path nor name")
        if self.source != "hf" and self.name:
            raise ValueError(f"name belongs to source 'hf', not '{self.source}'")
        if self.source == "builtin" and (self.config or self.split):
            raise ValueError("source 'builtin' has neither configs nor splits")
        if self.source in ("builtin", "text") and self.column:
            raise ValueError(f"source '{self.source}' has no columns")
        if self.split and kind_of(self.split) in ("validation", "test"):
            raise do_not_fit(
                ("split",),
                f"split '{self.split}' is for validation or test, which is never trained on",
            )
        return self

    @model_validator(mode="after")
    def _rows_are_packed_once(self) -> DataSpec:
        packed = self.source == "nanochat_packed"
        if self.num_shards is not None and not packed:
            raise do_not_fit(
                ("num_shards",),
                f"num_shards belongs to source 'nanochat_packed', not '{self.source}'; "
                "max_shards limits the shards of the others",
            )
        if not packed:
            return self
        for name in ("config", "split", "column"):
            if getattr(self, name) is not None:
                raise do_not_fit((name,), f"source 'nanochat_packed' has no {name}")
        if self.max_shards is not None:
            raise do_not_fit(
                ("max_shards",), "source 'nanochat_packed' takes num_shards, not max_shards"
            )
        if self.packing != "best_fit" or self.streams != 1:
            name = "packing" if self.packing != "best_fit" else "streams"
            raise do_not_fit(
                (name,),
                f"{name} cannot be chosen for source 'nanochat_packed': its rows are packed",
            )
        if self.tokenizer.train:
            if "tokenizer" in self.model_fields_set:
                raise do_not_fit(
                    ("tokenizer", "train"),
                    "source 'nanochat_packed' holds token ids, so its tokenizer cannot be trained "
                    "anew: give tokenizer.path, or nothing for the one below the data's path",
                )
            self.tokenizer = TokenizerSpec(path=f"{(self.path or '').rstrip('/')}/tokenizer")
        return self


class HorizonSpec(Strict):
    """How long to train: exactly one of the four."""

    steps: Steps | None = None
    """Training length in optimizer steps."""
    tokens: Tokens | None = None
    """Training length in tokens, rounded down to whole steps."""
    flops: Annotated[float, Field(ge=1, le=1e30)] | None = None
    """Training length in floating-point operations."""
    data_param_ratio: Annotated[float, Field(ge=1e-6, le=1e6)] | None = None
    """Training length as tokens per scaling parameter (matrices and lm_head)."""

    @model_validator(mode="after")
    def _exactly_one(self) -> HorizonSpec:
        given = [k for k in ("steps", "tokens", "flops", "data_param_ratio") if getattr(self, k)]
        if len(given) != 1:
            said = ", ".join(given) if given else "none"
            raise ValueError(
                f"give exactly one of steps, tokens, flops, data_param_ratio (given: {said})"
            )
        return self


class BatchSpec(Strict):
    """Tokens per optimizer step, and rows per forward pass on the device."""

    tokens: Tokens | Literal["auto"] = "auto"
    """Tokens per optimizer step; auto follows the scaling rule for batch sizes."""
    device_batch_size: Annotated[int, Field(ge=1, le=65_536)] | Literal["auto"] = "auto"
    """Rows per forward pass; auto measures which fits and runs fastest."""


class AdamGroupSpec(Strict):
    """AdamW settings of one parameter group, where they are not those of the recipe.

    lr: at the schedule's peak, scaled by nothing.
    """

    lr: LearningRate
    """Peak learning rate, not scaled further."""
    beta1: Annotated[float, Field(ge=0.0, lt=1.0)]
    """Decay rate of the first moment."""
    beta2: Annotated[float, Field(ge=0.0, lt=1.0)]
    """Decay rate of the second moment."""
    weight_decay: Annotated[float, Field(ge=0.0, le=10.0)]
    """Decoupled weight decay, constant over the run."""


class GroupsSpec(Strict):
    """Settings that an imported optimizer brought along, by parameter group.

    scalars: smear gate, smear_lambda and backout_lambda. matrix_lr: Muon's, scaled by nothing.
    """

    lm_head: AdamGroupSpec | None = None
    """Settings of the output projection."""
    wte: AdamGroupSpec | None = None
    """Settings of the token embedding table."""
    value_embeds: AdamGroupSpec | None = None
    """Settings of the value embedding tables."""
    resid_lambdas: AdamGroupSpec | None = None
    """Settings of the per-layer residual scales."""
    x0_lambdas: AdamGroupSpec | None = None
    """Settings of the per-layer input scales."""
    scalars: AdamGroupSpec | None = None
    """Settings of the smear and backout scalars."""
    matrix_lr: LearningRate | None = None
    """Muon's peak learning rate, not scaled further."""


class OptimizerSpec(Strict):
    """Learning rates before scaling by sqrt(batch / 524,288).

    recipe: whose rules they scale by; None is the model's. muon: a Muon variant beside it.
    groups: settings that replace the scaled ones, as they stand in an imported optimizer.
    """

    recipe: RecipeName | None = None
    """Generation whose scaling rules apply; null is the model's recipe."""
    muon: MuonName | None = None
    """Muon variant; null is the recipe's."""
    matrix_lr: LearningRate = 0.02
    """Muon's learning rate for matrices, before scaling."""
    embedding_lr: LearningRate = 0.3
    """AdamW learning rate of the embedding tables, before scaling."""
    unembedding_lr: LearningRate = 0.008
    """AdamW learning rate of lm_head, before scaling."""
    scalar_lr: LearningRate = 0.5
    """AdamW learning rate of the per-layer scalars, before scaling."""
    weight_decay: Annotated[float, Field(ge=0.0, le=10.0)] = 0.28
    """Muon's weight decay at its peak, before scaling."""
    groups: GroupsSpec | None = None
    """Settings per parameter group that replace the scaled ones, from an imported optimizer."""


class ScheduleSpec(Strict):
    warmup_steps: Annotated[int, Field(ge=0, le=MAX_STEPS)] = 40
    """Steps over which the learning rate rises linearly to its peak."""
    warmdown_ratio: Frac = 0.65
    """Share of the horizon over which the learning rate decays at the end."""
    warmdown_shape: Literal["linear", "cosine"] = "linear"
    """Shape of that decay."""
    final_lr_frac: Frac = 0.05
    """Learning rate at the end, as a fraction of the peak."""


class NumericsSpec(Strict):
    """`deterministic: None` means true on the CPU and false on a GPU.

    precision: fp8 is bf16 with the matrix products of the trunk in 8 bits, on cards that have it.

    kernels: "triton" lets our own kernels race against the compiler's; the faster ones are used.

    peak: what MFU refers to; "measured" asks for a matrix product even of a card in the table.
    """

    precision: Literal["auto", "bf16", "fp32", "fp16", "fp8"] = "auto"
    """Compute dtype; auto is bf16 on GPUs that have it and fp32 elsewhere."""
    deterministic: bool | None = None
    """Use deterministic kernels only; null is true on the CPU and false on a GPU."""
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = 42
    """Seed of the initial weights and of every shuffle."""
    threads: Annotated[int, Field(ge=1, le=1024)] | None = None
    """CPU threads of the trainer; null lets torch choose."""
    compile: bool | Literal["auto"] = "auto"
    """Compile the model with torch.compile; auto decides by device and length of the run."""
    kernels: Literal["compiled", "triton"] = "compiled"
    """triton autotunes traind's own kernels against the compiler's at the first start."""
    peak: Literal["auto", "measured"] = "auto"
    """FLOP/s that MFU refers to: the table's value, or always measured on this machine."""


class EvaluateSpec(Strict):
    """Cadences in steps; None is off. CORE at the end of a phase: `core_every: "end"`.

    token_bytes: the lengths by which val bpb counts bytes. raw: the bytes of each token. decoded:
    those of its text, where bytes that are not UTF-8 count 3 per replacement character, as
    nanochat counted before July 2026 (val bpb reads about 0.05 % lower).
    """

    bpb_every: Steps | Literal["end"] | None = 250
    """Steps between evaluations of validation bits per byte; end is once per phase."""
    eval_tokens: Tokens = 41_943_040
    """Validation tokens per evaluation."""
    core_every: Steps | Literal["end"] | None = None
    """Steps between CORE evaluations; end is once per phase, null is never."""
    core_max_per_task: Annotated[int, Field(ge=1, le=1_000_000)] | None = 500
    """Maximum number of items per CORE task; null takes all."""
    core_bundle: Text | None = None
    """Folder of the CORE bundle; null finds the one fetched by `traind fetch core`."""
    sample_every: Steps | Literal["end"] | None = 2000
    """Steps between samples of `prompts`; end is once per phase, null is never."""
    prompts: Annotated[
        list[Annotated[str, StringConstraints(min_length=1, max_length=2048)]],
        Field(max_length=32),
    ] = []
    """Prompts continued at each sample."""
    recheck_bpb: Literal["auto", "always", "never"] = "auto"
    """When a resume measures val bpb again and compares it with the checkpoint's value."""
    token_bytes: Literal["raw", "decoded"] = "raw"
    """Byte table of val bpb: raw bytes, or decoded text as nanochat counted before July 2026."""


class CheckpointSpec(Strict):
    every_seconds: Annotated[float, Field(ge=0.1, le=1e7)] | None = 1200.0
    """Seconds between checkpoints, at a step boundary; null is off."""
    every_steps: Steps | None = None
    """Steps between checkpoints; null is off."""
    keep_last: Annotated[int, Field(ge=2, le=10_000)] = 2
    """Number of newest checkpoints that are kept."""
    keep_every: Steps | None = None
    """Steps between checkpoints that are kept for good; null keeps none this way."""


class RecoverySpec(Strict):
    on_crash: Literal["restart", "stop"] = "restart"
    """Whether a crashed trainer is restarted from the newest verified checkpoint."""
    max_attempts_without_progress: Annotated[int, Field(ge=1, le=1000)] = 3
    """Restarts in a row without a new step before the run fails."""
    on_reboot: Literal["resume", "wait"] = "resume"
    """Whether the run resumes by itself after the machine restarted."""
    on_non_finite: Literal["stop", "rewind"] = "stop"
    """On a NaN or infinite loss: stop, or rewind to a checkpoint and skip the batches."""
    max_rewinds: Annotated[int, Field(ge=1, le=100)] = 3
    """Maximum number of rewinds after non-finite losses."""


Url = Annotated[str, StringConstraints(max_length=2048, pattern=r"^[a-z][a-z0-9+.-]*://\S+$")]
MetadataKey = Annotated[str, StringConstraints(min_length=1, max_length=64)]
MetadataValue = Annotated[str, StringConstraints(max_length=512)]


class RunSpec(Strict):
    """A complete run spec. `resolve` builds one from a request body."""

    name: Name
    """Unique name; works wherever an id does."""
    title: Annotated[str, StringConstraints(max_length=300)] | None = None
    """Free text shown beside the name."""
    metadata: Annotated[dict[MetadataKey, MetadataValue], Field(max_length=16)] = {}
    """Up to 16 free key/value pairs."""
    preset: str = "demo"
    """Set of defaults that the rest of the spec overrides."""
    start: bool = True
    """Whether the run is queued at once; false leaves it in state created."""
    device: Annotated[str, StringConstraints(pattern=r"^(auto|cpu|mps|cuda(:\d{1,3})?)$")] = "auto"
    """Device to train on; auto is the first free GPU, or the CPU of a machine without one."""
    model: ModelSpec = ModelSpec()
    """Architecture."""
    data: DataSpec = DataSpec()
    """Corpus, tokenizer and packing."""
    horizon: HorizonSpec
    """Training length."""
    batch: BatchSpec = BatchSpec()
    """Batch size."""
    optimizer: OptimizerSpec = OptimizerSpec()
    """Learning rates and weight decay."""
    schedule: ScheduleSpec = ScheduleSpec()
    """Learning rate schedule."""
    numerics: NumericsSpec = NumericsSpec()
    """Precision, determinism and compilation."""
    evaluate: EvaluateSpec = EvaluateSpec()
    """Evaluations during training."""
    checkpoint: CheckpointSpec = CheckpointSpec()
    """Checkpoint cadence and retention."""
    recovery: RecoverySpec = RecoverySpec()
    """What happens after crashes, reboots and non-finite losses."""
    notify: Annotated[list[Url], Field(max_length=16)] = []
    """Webhook or apprise URLs that receive the run's notices."""

    @field_validator("preset")
    @classmethod
    def _known_preset(cls, preset: str) -> str:
        if preset not in PRESETS:
            raise ValueError(f"unknown preset; known are {', '.join(PRESETS)}")
        return preset

    @model_validator(mode="after")
    def _batch_divides(self) -> RunSpec:
        tokens, rows = self.batch.tokens, self.batch.device_batch_size
        length = self.model.sequence_len
        if not isinstance(tokens, int):
            return self
        if tokens % length:
            raise do_not_fit(
                ("batch", "tokens"),
                f"batch.tokens {tokens:,} is not a multiple of model.sequence_len {length:,}",
            )
        if isinstance(rows, int) and tokens % (rows * length):
            near = max(1, tokens // (rows * length)) * rows * length
            raise do_not_fit(
                ("batch", "tokens"),
                f"batch.tokens {tokens:,} is not divisible by device_batch_size x sequence_len "
                f"= {rows} x {length:,} = {rows * length:,}; {near:,} would be",
            )
        return self

    @model_validator(mode="after")
    def _streams_share_a_step(self) -> RunSpec:
        tokens, streams = self.batch.tokens, self.data.streams
        if isinstance(tokens, int) and tokens // self.model.sequence_len % streams:
            raise do_not_fit(
                ("data", "streams"),
                f"a step of {tokens // self.model.sequence_len:,} rows (batch.tokens {tokens:,} / "
                f"sequence_len {self.model.sequence_len:,}) cannot be shared equally by "
                f"{streams} streams",
            )
        return self

    @model_validator(mode="after")
    def _tiles_fit(self) -> RunSpec:
        """Products in 8 bits are made of tiles; with these two every size is a multiple."""
        for name in ("head_dim", "sequence_len"):
            if self.numerics.precision == "fp8" and getattr(self.model, name) % FP8_TILE:
                raise do_not_fit(
                    ("numerics", "precision"),
                    f"fp8 multiplies in tiles of {FP8_TILE}: model.{name} "
                    f"{getattr(self.model, name):,} would have to be a multiple of it",
                )
        return self

    @model_validator(mode="after")
    def _kernels_fit(self) -> RunSpec:
        if self.numerics.kernels == "triton" and self.numerics.precision not in ("auto", "bf16"):
            raise do_not_fit(
                ("numerics", "kernels"),
                f"the kernels are made for bf16: with precision {self.numerics.precision} there "
                "are none to race",
            )
        return self


# A preset is a partial spec: what it does not say is the default above.
PRESETS: dict[str, dict[str, Any]] = {
    "demo": {
        "model": {
            "depth": 4,
            "aspect_ratio": 16,
            "head_dim": 16,
            "sequence_len": 128,
            "vocab_size": 2048,
        },
        "data": {"source": "builtin"},
        "horizon": {"steps": 200},
        "batch": {"tokens": 2048, "device_batch_size": 16},
        "evaluate": {
            "bpb_every": 50,
            "eval_tokens": 32_768,
            "sample_every": 100,
            "prompts": ["def main(", "import os\n", "class Node:"],
        },
        "checkpoint": {"every_steps": 50},
    },
    "rtx4070-d12": {
        "model": {"depth": 12, "sequence_len": 2048, "window_pattern": "L", "vocab_size": 32_768},
        "data": {"source": "hf", "name": "karpathy/climbmix-400b-shuffle", "max_shards": "auto"},
        "horizon": {"steps": 130_000},
        "batch": {"tokens": 65_536, "device_batch_size": 8},
        "schedule": {"warmdown_shape": "cosine"},
        "evaluate": {"bpb_every": 10_000, "core_every": "end", "sample_every": 10_000},
        "checkpoint": {"keep_every": 10_000},
    },
    "nanochat-d12": {
        "model": {"depth": 12, "window_pattern": "SSSL"},
        "data": {"source": "hf", "name": "karpathy/climbmix-400b-shuffle", "max_shards": "auto"},
        "horizon": {"data_param_ratio": 12},
        "evaluate": {"core_every": "end"},
    },
    "nanochat-d20": {
        "model": {"depth": 20, "window_pattern": "SSSL"},
        "data": {"source": "hf", "name": "karpathy/climbmix-400b-shuffle", "max_shards": "auto"},
        "horizon": {"data_param_ratio": 12},
        "evaluate": {"core_every": "end"},
    },
}

# These are choices, not settings to be merged: naming one key replaces the whole.
_REPLACED_WHOLE = {"horizon", "metadata", "tokenizer"}


def resolve(body: dict[str, Any]) -> RunSpec:
    """The complete spec for a request body.

    Raises pydantic.ValidationError, whose locations are paths into the body.
    """
    preset = body.get("preset", "demo")
    base = PRESETS.get(preset, {}) if isinstance(preset, str) else {}
    if base.get("horizon") is None:
        base = {**base, "horizon": {"steps": 200}}
    return RunSpec.model_validate(_overlay(base, body))


def _overlay(base: dict[str, Any], body: dict[str, Any]) -> dict[str, Any]:
    merged = copy.deepcopy(base)
    for key, value in body.items():
        below = merged.get(key)
        if isinstance(value, dict) and isinstance(below, dict) and key not in _REPLACED_WHOLE:
            if key == "data" and value.get("source", below.get("source")) != below.get("source"):
                merged[key] = value  # another source: the preset's path and name mean nothing
            else:
                merged[key] = _overlay(below, value)
        else:
            merged[key] = value
    return merged


def padded_vocab(vocab_size: int, multiple: int = 64) -> int:
    """Vocabulary rounded up for the embeddings and the head (RECIPE: multiple of 64)."""
    return math.ceil(vocab_size / multiple) * multiple
