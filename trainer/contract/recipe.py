"""Recipes: versioned values (architecture, optimizer, scaling) of nanochat's generations.

A recipe has architecture traits (smear, windows, storage and initial values of the tables), rules
of the optimizer (Muon variant, how rates scale with the width) and the tokenizer's special tokens.
Each is a value here, and the code that reads it checks no version. `RECIPES["2026-07"]` is the
default. A spec names a recipe and may override single traits, since an imported file may combine
traits of two generations.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from trainer.contract.spec import ModelSpec, OptimizerSpec

RecipeName = Literal["2026-03", "2026-07", "2026-09"]
MuonName = Literal["2026-03", "2026-03-bf16", "2026-07"]
TableStorage = Literal["compute", "float32"]
DEFAULT: RecipeName = "2026-07"
DEFAULT_MUON: MuonName = "2026-07"

CHAT_TOKENS = (
    "<|bos|>",
    "<|user_start|>",
    "<|user_end|>",
    "<|assistant_start|>",
    "<|assistant_end|>",
)
TOOL_TOKENS = ("<|python_start|>", "<|python_end|>", "<|output_start|>", "<|output_end|>")


@dataclass(frozen=True)
class Architecture:
    """Architecture traits of a recipe.

    smear: each position takes a gated part of the one before it, after the embedding.
    short_window: tokens back of an `S` layer; None is a quarter of the sequence in blocks of 128.
    tables: dtype in which embedding tables and their moments are stored.
    value_init_normal: value embeddings start as N(0, 1) instead of U(±sqrt(3 / width)).
    counts_smear_gate: True if the FLOPs per token include the smear gate.
    """

    smear: bool = True
    short_window: int | None = None
    tables: TableStorage = "compute"
    value_init_normal: bool = False
    counts_smear_gate: bool = True


@dataclass(frozen=True)
class Muon:
    """The steps of Muon that differ by recipe (docs/recipe.md, Muon).

    equilibrate: rows get equal norms before the orthogonalization. renormalize: the orthogonalized
    update gets the Frobenius norm sqrt(min(rows, cols)). always_bf16: orthogonalized in bfloat16
    whatever the compute dtype.
    """

    equilibrate: bool = True
    renormalize: bool = True
    always_bf16: bool = False


@dataclass(frozen=True)
class OptimizerRules:
    """Rates scale with (width / 768)^exponent: head_width of lm_head, table_width of the tables."""

    muon: MuonName = "2026-07"
    head_width: float = -0.5
    table_width: float = -0.5


@dataclass(frozen=True)
class Recipe:
    """One generation of nanochat. fewer_core_examples: a CORE task with fewer items than examples
    shows those it has; otherwise its items count as wrong."""

    architecture: Architecture
    optimizer: OptimizerRules
    special_tokens: tuple[str, ...]
    fewer_core_examples: bool = False


DEFAULT_ARCHITECTURE = Architecture()
MUON: dict[MuonName, Muon] = {
    "2026-03": Muon(equilibrate=False, renormalize=False),
    "2026-03-bf16": Muon(equilibrate=False, renormalize=False, always_bf16=True),
    "2026-07": Muon(),
}
RECIPES: dict[RecipeName, Recipe] = {
    "2026-03": Recipe(
        Architecture(counts_smear_gate=False),
        OptimizerRules(muon="2026-03"),
        CHAT_TOKENS + TOOL_TOKENS,
    ),
    "2026-07": Recipe(DEFAULT_ARCHITECTURE, OptimizerRules(), CHAT_TOKENS + TOOL_TOKENS),
    "2026-09": Recipe(
        Architecture(
            smear=False,
            short_window=512,
            tables="float32",
            value_init_normal=True,
            counts_smear_gate=False,
        ),
        OptimizerRules(head_width=-1.0, table_width=0.0),
        CHAT_TOKENS,
        fewer_core_examples=True,
    ),
}


def architecture_of(model: ModelSpec) -> Architecture:
    """The recipe's architecture, with the spec's own traits in place of the recipe's."""
    own = {"smear": model.smear, "short_window": model.short_window, "tables": model.tables}
    named = RECIPES[model.recipe].architecture
    return replace(named, **{k: v for k, v in own.items() if v is not None})


def rules_of(model: ModelSpec, optimizer: OptimizerSpec) -> OptimizerRules:
    """The optimizer's rules: of its own recipe, or of the model's if it names none."""
    rules = RECIPES[optimizer.recipe or model.recipe].optimizer
    return rules if optimizer.muon is None else replace(rules, muon=optimizer.muon)


def special_tokens_of(model: ModelSpec) -> tuple[str, ...]:
    """The special tokens of a tokenizer that is trained for the model."""
    return RECIPES[model.recipe].special_tokens


def changes(model: ModelSpec, optimizer: OptimizerSpec) -> list[str]:
    """Differences from the default recipe, one sentence each; empty for the default."""
    default = RECIPES[DEFAULT]
    found = [
        *_differences(architecture_of(model), default.architecture),
        *_differences(rules_of(model, optimizer), default.optimizer),
    ]
    if special_tokens_of(model) != default.special_tokens:
        count = len(special_tokens_of(model))
        found.append(f"a new tokenizer has {count} special tokens instead of 9")
    return found


def _differences(own: Architecture | OptimizerRules, default: object) -> list[str]:
    return [
        _SENTENCES[field.name].format(getattr(own, field.name))
        for field in fields(own)
        if getattr(own, field.name) != getattr(default, field.name)
    ]


_SENTENCES = {
    "smear": "no smear: a position takes nothing of the one before it after the embedding",
    "short_window": "S layers look {:,} tokens back, whatever the sequence length",
    "tables": "embedding tables and their moments are stored in {}",
    "value_init_normal": "value embeddings start as N(0, 1)",
    "counts_smear_gate": "the FLOPs per token leave out the smear gate",
    "muon": "Muon of {}: no row equilibration and no renormalization of the update",
    "head_width": "the learning rate of lm_head scales with (width / 768)^{:g}",
    "table_width": "the learning rates of the embedding tables scale with (width / 768)^{:g}",
}
