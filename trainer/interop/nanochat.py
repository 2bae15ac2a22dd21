"""Reads nanochat checkpoints of every generation from 14 March 2026 on (docs/nanochat.md).

Every part is verified first: `read` runs no code from the files, downloads nothing, and either
returns a complete state under traind's names or raises InteropError with the file and the reason.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from trainer.contract.recipe import Architecture, MuonName
from trainer.contract.shape import ModelShape, count_parameters
from trainer.interop import nanochat_layout as layout
from trainer.interop import nanochat_traits as traits_of
from trainer.interop import torchfile
from trainer.interop.errors import InteropError
from trainer.interop.nanochat_layout import NanochatFolder
from trainer.interop.nanochat_meta import Cursor, NanochatMeta, read_meta
from trainer.interop.nanochat_optimizer import (
    SLACK_BYTES,
    TABLE_DTYPES,
    NanochatOptimizer,
    read_optimizer,
)
from trainer.interop.nanochat_traits import Traits
from trainer.interop.torchfile import checked, compare_keys
from trainer.model import parameters
from trainer.optim.optimizer import ADAMW_STEP

Result = TypeVar("Result")
Precision = Literal["auto", "bf16", "fp32", "fp16", "fp8"]
COMPILED_PREFIX = "_orig_mod."
BETWEEN = "between two generations"
OUR_KEY = "traind"  # in an exported meta file: data without a field in nanochat
MAX_LOG_BYTES = 4_000_000
LOGGED_DTYPE = re.compile(r"^COMPUTE_DTYPE: torch\.(float32|bfloat16|float16)\b", re.MULTILINE)
LOGGED: dict[str, Precision] = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


@dataclass(frozen=True)
class Options:
    """Options that supply what the files do not contain, or override it.

    weights_only: import without the optimizer.
    """

    muon: MuonName | None = None
    precision: Precision | None = None
    weights_only: bool = False


@dataclass(frozen=True)
class NanochatRun:
    """One nanochat checkpoint under traind's names.

    optimizer: None if only weights are imported. muon: the variant it continues with. muon_shown:
    how the second moments show it. key_order: the names in the order of the model file.
    raw_meta: the unchanged meta file, for an export.
    """

    found: NanochatFolder
    step: int
    traits: Traits
    generation: str
    shape: ModelShape
    model: dict[str, Tensor]
    key_order: tuple[str, ...]
    optimizer: NanochatOptimizer | None
    muon: MuonName
    muon_shown: str | None
    precision: Precision
    precision_shown: str
    meta: NanochatMeta
    raw_meta: dict[str, Any]

    @property
    def tag(self) -> str:
        return self.found.tag

    @property
    def world(self) -> int:
        """Number of GPUs that the run was trained on, by its optimizer; 1 without one."""
        return self.optimizer.world if self.optimizer else 1

    @property
    def cursor(self) -> Cursor | None:
        return self.meta.dataloader_state_dict

    def optimizer_state(self) -> dict[str, Tensor]:
        """traind's flat optimizer state; fresh moments if only weights are imported."""
        if self.optimizer is not None:
            return self.optimizer.state
        return fresh_state(self.shape, self.model[parameters.WTE].dtype)


def read_nanochat(
    base_dir: Path | str, tag: str, step: int, options: Options | None = None
) -> NanochatRun:
    """Read the checkpoint `tag` at `step` below `base_dir`. Raises InteropError."""
    found, _ = layout.choose(layout.find(base_dir), base_dir, tag=tag, step=step)
    return read(found, step, options or Options())


def read(found: NanochatFolder, step: int, options: Options) -> NanochatRun:
    """Read the checkpoint of a folder at `step`. Raises InteropError."""
    meta, raw = read_meta(found.meta(step), found.root)
    if meta.step != step:
        raise InteropError(
            found.meta(step), f"holds step {meta.step}, and its name is that of step {step}"
        )
    if not options.weights_only:
        _require_training_fields(found.meta(step), meta)
    state, order = _load_model(found.model(step), found.root, meta)
    traits = _model_traits(found, state, meta, raw)
    _refuse_older(found.model(step), traits)
    shape = meta.shape(_architecture(traits, meta))
    model = _checked_model(found.model(step), state, shape, traits)
    optimizer = None
    if not options.weights_only:
        optimizer = _against_each(traits, lambda: _optimizer(found, step, shape, order, raw))
        traits = replace(traits, stamped=optimizer.stamped)
    muon, shown = _muon(optimizer, shape)
    traits = replace(traits, muon=muon)
    shape = _as_counted(shape, options.muon or muon)
    precision, precision_shown = _precision(found, traits, options)
    return NanochatRun(
        found=found,
        step=step,
        traits=traits,
        generation=traits_of.generation_of(traits) or BETWEEN,
        shape=shape,
        model=model,
        key_order=order,
        optimizer=optimizer,
        muon=options.muon or muon or "2026-07",
        muon_shown=shown,
        precision=precision,
        precision_shown=precision_shown,
        meta=meta,
        raw_meta=raw,
    )


def _require_training_fields(path: Path, meta: NanochatMeta) -> None:
    if missing := meta.training_fields_missing:
        raise InteropError(
            path,
            f"lacks {', '.join(missing)}: no run can continue from it; weights_only "
            "(--weights-only) takes the model alone",
        )


def fresh_state(shape: ModelShape, table_dtype: torch.dtype) -> dict[str, Tensor]:
    """A fresh optimizer state: every moment is zero."""
    shapes, tables = parameters.parameter_shapes(shape), parameters.table_names(shape)
    state: dict[str, Tensor] = {ADAMW_STEP: torch.zeros((), dtype=torch.int64)}
    for name in (n for group in parameters.adam_groups(shape) for n in group.names):
        dtype = table_dtype if name in tables else torch.float32
        for key in ("exp_avg", "exp_avg_sq"):
            state[f"adamw.{name}.{key}"] = torch.zeros(shapes[name], dtype=dtype)
    for group in parameters.muon_groups(shape):
        stack = (len(group.names), group.rows, group.cols)
        state[f"muon.{group.key}.momentum"] = torch.zeros(stack)
        state[f"muon.{group.key}.second_momentum"] = torch.zeros(group.second_shape)
    return state


# --- model ---------------------------------------------------------------------------------------


def _load_model(
    path: Path, root: Path, meta: NanochatMeta
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """({name: unchecked value}, the names in the file's order)."""
    most = 4 * count_parameters(meta.shape(Architecture())).total + SLACK_BYTES
    found = torchfile.load(path, root, most)
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise InteropError(path, "holds no mapping of names to tensors")
    state = {name.removeprefix(COMPILED_PREFIX): tensor for name, tensor in found.items()}
    if len(state) != len(found):
        raise InteropError(path, f"has names with and without {COMPILED_PREFIX}")
    return state, tuple(state)


def _model_traits(
    found: NanochatFolder, state: dict[str, Any], meta: NanochatMeta, raw: dict[str, Any]
) -> Traits:
    wte = state.get(parameters.WTE)
    user = raw.get("user_config")
    row = None
    if meta.dataloader_row is not None or meta.dataloader_state_dict is not None:
        row = meta.dataloader_row is not None
    return Traits(
        smear=parameters.SMEAR_GATE in state or parameters.SMEAR_LAMBDA in state,
        backout=parameters.BACKOUT_LAMBDA in state,
        absolute_window=meta.model_config_.short_seq_len is not None,
        row_cursor=row,
        stamped=None,
        float32_tables=not isinstance(wte, Tensor) or wte.dtype == torch.float32,
        v2_flags=traits_of.v2_flags(user) if isinstance(user, dict) else None,
        experiments=None if found.layout == "folder" else found.layout == "experiments",
        muon=None,
    )


def _refuse_older(path: Path, traits: Traits) -> None:
    if traits_of.is_before_march(traits):
        raise InteropError(
            path,
            f"is of nanochat {traits_of.BEFORE_MARCH.name} (no smear gate and no backout_lambda): "
            "traind has no recipe for that model. Continue it with its own version of nanochat, or "
            "use its text and tokenizer in a new run (data.source parquet, data.tokenizer.path)",
        )


def _architecture(traits: Traits, meta: NanochatMeta) -> Architecture:
    """The traits of the architecture, detected from the files."""
    is_wide = traits.float32_tables and not traits.smear
    return Architecture(
        smear=traits.smear,
        short_window=meta.model_config_.short_seq_len,
        tables="float32" if is_wide else "compute",
        value_init_normal=not traits.smear,
        counts_smear_gate=False,
    )


def _as_counted(shape: ModelShape, muon: MuonName | None) -> ModelShape:
    """The shape for FLOP counts: nanochat counts the smear gate's since its Muon of July."""
    counts = shape.traits.smear and muon in (None, "2026-07")
    return replace(shape, traits=replace(shape.traits, counts_smear_gate=counts))


def _against_each(traits: Traits, read: Callable[[], Result]) -> Result:
    """Call `read`; its error for a file of no known generation lists the traits against each."""
    try:
        return read()
    except InteropError as error:
        if traits_of.generation_of(traits):
            raise
        why = f"{error.reason}; it is of no known generation: {traits_of.against_each(traits)}"
        raise InteropError(error.file, why) from None


def _checked_model(
    path: Path, state: dict[str, Any], shape: ModelShape, traits: Traits
) -> dict[str, Tensor]:
    shapes, tables = parameters.parameter_shapes(shape), parameters.table_names(shape)
    _against_each(traits, lambda: compare_keys(path, "weights", set(state), set(shapes)))
    floats = (torch.float32,)
    model = {
        name: checked(path, name, state[name], size, TABLE_DTYPES if name in tables else floats)
        for name, size in shapes.items()
    }
    if len({model[name].dtype for name in tables}) > 1:
        raise InteropError(path, "embedding tables are stored in different dtypes")
    return model


# --- optimizer -----------------------------------------------------------------------------------


def _optimizer(
    found: NanochatFolder, step: int, shape: ModelShape, order: Sequence[str], raw: dict[str, Any]
) -> NanochatOptimizer:
    ranks = next((s.ranks for s in found.saved if s.step == step), ())
    if not ranks:
        raise InteropError(
            found.shard(step, 0),
            "is not there: without its optimizer the model can be imported as weights alone "
            "(weights_only, --weights-only), to evaluate, sample, export, or extend with fresh "
            "moments",
        )
    files = [(rank, found.shard(step, rank)) for rank in ranks]
    optimizer = read_optimizer(files, found.root, shape, order)
    own = raw.get(OUR_KEY)
    expected = own.get("optimizer_updates", step) if isinstance(own, dict) else step
    if optimizer.updates != expected:
        raise InteropError(
            files[0][1],
            f"has done {optimizer.updates:,} updates where the checkpoint stands at step "
            f"{step:,}: it is the optimizer of another step",
        )
    return optimizer


def _muon(
    optimizer: NanochatOptimizer | None, shape: ModelShape
) -> tuple[MuonName | None, str | None]:
    if optimizer is None:
        return None, None
    return traits_of.muon_of(optimizer.state, shape, optimizer.updates)


# --- precision -----------------------------------------------------------------------------------


def _precision(found: NanochatFolder, traits: Traits, options: Options) -> tuple[Precision, str]:
    """(the precision to continue in, how it is known).

    v1 stores tables in the compute dtype. v2 always stores them in float32: only its training
    log states the precision.
    """
    if options.precision is not None:
        return options.precision, "as requested"
    if not traits.float32_tables:
        return "bf16", "embedding tables are stored in bfloat16"
    if traits.smear:
        return "fp32", "embedding tables are stored in float32"
    logged = LOGGED_DTYPE.findall(_tail(found.training_log))
    if logged:
        return LOGGED[logged[-1]], f"{found.training_log.name} states torch.{logged[-1]}"
    return "auto", "the files do not state the compute dtype; --precision sets it"


def _tail(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(MAX_LOG_BYTES).decode("utf-8", "replace")
    except OSError:
        return ""
