"""Writes nanochat's own checkpoint layouts; its scripts can continue a run (docs/nanochat.md).

v1 has `base_checkpoints/TAG/`, v2 `experiments/NAME/TAG/base/`: other keys, another order of them
(v2 numbers the optimizer by it), other meta fields. A model that a generation cannot represent is
refused by name; differences in behaviour are returned as notes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from trainer.contract import durable
from trainer.contract.plan import Hyperparameters
from trainer.contract.shape import ModelShape
from trainer.interop.errors import InteropError
from trainer.interop.nanochat_layout import folder_of
from trainer.interop.nanochat_optimizer import Numbering, numbering_of
from trainer.model import parameters
from trainer.optim.muon import BETA2, POLAR_EXPRESS
from trainer.optim.optimizer import ADAMW_STEP

ExportGeneration = Literal["v1", "v2"]
WINDOW_UNIT = 128  # v2's short_seq_len is a multiple of it
DEFAULT_WINDOW = 512
V2_SPECIALS = ("<|bos|>", "<|assistant_end|>")  # those that v2 looks up by name


@dataclass(frozen=True)
class Rates:
    """The schedule's values at the last step: nanochat stores them in its groups."""

    lr_multiplier: float
    momentum: float
    weight_decay: float


def generation_for(shape: ModelShape) -> ExportGeneration:
    """The generation with this architecture."""
    return "v1" if shape.traits.smear else "v2"


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
    experiment: str | None = None,
) -> list[Path]:
    """Write model, optimizer and meta of a checkpoint; returns the files, each complete or absent.

    meta: see `nanochat_export_meta`, or the one kept by an import. experiment: its name selects
    v2's layout, keys and numbering. Raises InteropError for a model that cannot be expressed.
    """
    folder = folder_of(Path(base_dir), tag, experiment)
    generation: ExportGeneration = "v1" if experiment is None else "v2"
    own = expressed(generation, shape, model_state)
    names = key_order(own, generation)
    wide = (lambda t: t.float()) if generation == "v2" else (lambda t: t)
    optimizer = optimizer_for_nanochat(
        {name: wide(t) if t.is_floating_point() else t for name, t in optimizer_state.items()},
        numbering_of(own, names if generation == "v2" else None),
        hyper,
        rates,
    )
    if generation == "v2":
        optimizer["world_size"] = 1
    files = [
        folder / f"model_{step:06d}.pt",
        folder / f"optim_{step:06d}_rank0.pt",
        folder / f"meta_{step:06d}.json",
    ]
    folder.mkdir(parents=True, exist_ok=True)
    _save(files[0], {name: _on_host(wide(model_state[name])) for name in names})
    _save(files[1], optimizer)
    _replace(files[2], json.dumps({**meta, "step": step}, indent=2).encode())
    return files


def expressed(
    generation: ExportGeneration, shape: ModelShape, model_state: Mapping[str, Tensor]
) -> ModelShape:
    """The shape in the generation's terms. Raises InteropError if it cannot express the model."""

    def refuse(why: str) -> InteropError:
        return InteropError(f"nanochat {generation}", why)

    if generation == "v1":
        if not shape.traits.smear:
            raise refuse("has a smear gate that it would train, and this model has none")
        quarter = replace(shape, traits=replace(shape.traits, short_window=None))
        if quarter.windows != shape.windows:
            raise refuse(
                f"derives the short window from the sequence length ({quarter.short_window:,} "
                f"tokens) and this model looks back {shape.short_window:,}"
            )
        return shape
    if shape.traits.smear:
        if model_state[parameters.SMEAR_LAMBDA].any():
            raise refuse("has no smear, and this model's smear_lambda is not zero")
        shape = replace(shape, traits=replace(shape.traits, smear=False))
    if uses_short_window(shape) and shape.short_window % WINDOW_UNIT:
        raise refuse(
            f"has windows that are multiples of {WINDOW_UNIT} tokens, and this model looks back "
            f"{shape.short_window:,}"
        )
    return shape


def require_specials(generation: ExportGeneration, special_tokens: tuple[str, ...]) -> None:
    """Raises InteropError for a tokenizer without the tokens that v2 looks up by name."""
    missing = [name for name in V2_SPECIALS if name not in special_tokens]
    if generation == "v2" and missing:
        raise InteropError(
            "nanochat v2", f"asks for special tokens that this tokenizer lacks: {missing}"
        )


def uses_short_window(shape: ModelShape) -> bool:
    """True if any layer has the short window; the last one never does."""
    pattern = shape.window_pattern
    return any(pattern[i % len(pattern)] == "S" for i in range(shape.n_layer - 1))


def short_seq_len(shape: ModelShape) -> int:
    """short_seq_len of v2's meta; its default for a model without short windows."""
    return shape.short_window if uses_short_window(shape) else DEFAULT_WINDOW


def key_order(shape: ModelShape, generation: ExportGeneration) -> tuple[str, ...]:
    """The names of the model file in the order of the generation."""
    names = tuple(parameters.parameter_shapes(shape))
    if generation == "v1":
        return names
    layers = [n for n in names if n.startswith("transformer.h.")]
    gates = [n for n in layers if ".ve_gate." in n]
    values = [n for n in names if n.startswith("value_embeds.")]
    matrices = [n for n in layers if n not in gates]
    scalars = parameters.scalar_names(shape)
    return (parameters.WTE, parameters.LM_HEAD, *matrices, *scalars, *values, *gates)


# --- optimizer -----------------------------------------------------------------------------------


def optimizer_for_nanochat(
    state: Mapping[str, Tensor], numbering: Numbering, hyper: Hyperparameters, rates: Rates
) -> dict[str, Any]:
    """nanochat's optimizer state dict: parameters numbered through the groups in its order."""
    numbers = numbering.numbers()
    numbered: dict[int, dict[str, Any]] = {}
    groups: list[dict[str, Any]] = []
    for group, names in zip(numbering.adam, numbering.adam_names, strict=True):
        for name in names:
            numbered[numbers[name]] = {
                "step": int(state[ADAMW_STEP]),
                "exp_avg": _on_host(state[f"adamw.{name}.exp_avg"]),
                "exp_avg_sq": _on_host(state[f"adamw.{name}.exp_avg_sq"]),
            }
        groups.append(_adam_group(group, hyper, rates, [numbers[name] for name in names]))
    for group, names in zip(numbering.muon, numbering.muon_names, strict=True):
        theirs = [group.names.index(name) for name in names]
        numbered[numbers[names[0]]] = {
            "momentum_buffer": _on_host(state[f"muon.{group.key}.momentum"][theirs]),
            "second_momentum_buffer": _on_host(state[f"muon.{group.key}.second_momentum"][theirs]),
        }
        groups.append(_muon_group(hyper, rates, [numbers[name] for name in names]))
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


# --- files ---------------------------------------------------------------------------------------


def _on_host(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu").clone(memory_format=torch.contiguous_format)


def _save(path: Path, content: Any) -> None:
    with durable.replacing(path, durable.BY_UMASK) as file:
        torch.save(content, file)


def _replace(path: Path, content: bytes) -> None:
    durable.write_durably(path, content, durable.BY_UMASK)
