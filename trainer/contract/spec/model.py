"""Spec of the architecture: depth, and its other options."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, StringConstraints, model_validator

from trainer.contract.recipe import DEFAULT, RecipeName, TableStorage, architecture_of
from trainer.contract.spec.fields import Strict, do_not_fit

AttentionBackend = Literal["sdpa", "masked", "blocked", "varlen", "flex", "flash3"]


class ModelSpec(Strict):
    """Model architecture. `depth` sets its size; the rest has nanochat's defaults.

    recipe: generation of the architecture (`recipe.py`). smear, short_window (tokens back of an
    `S` layer) and tables (storage dtype) override single traits of it.
    """

    recipe: RecipeName = DEFAULT
    """Generation of nanochat whose architecture and initial values the model has."""
    depth: Annotated[int, Field(ge=1, le=128)] = 12
    """Number of transformer layers; the width follows as depth × aspect_ratio."""
    aspect_ratio: Annotated[int, Field(ge=1, le=1024)] = 64
    """Channels of width per layer: model width = depth × aspect_ratio, rounded up to head_dim."""
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


def padded_vocab(vocab_size: int, multiple: int = 64) -> int:
    """Vocabulary rounded up for the embeddings and the head (docs/recipe.md: a multiple of 64)."""
    return math.ceil(vocab_size / multiple) * multiple
