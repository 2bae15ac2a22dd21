"""Model shape from depth; parameter and FLOP counts (docs/recipe.md, Model)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from trainer.contract.recipe import DEFAULT_ARCHITECTURE, Architecture, architecture_of
from trainer.contract.spec import ModelSpec, padded_vocab

VE_GATE_CHANNELS = 12
SMEAR_CHANNELS = 24


@dataclass(frozen=True)
class ModelShape:
    """Every size of the model and the traits of its recipe's architecture.

    `windows[i]` is the attention window of layer i, in tokens back.
    """

    n_layer: int
    n_embd: int
    n_head: int
    n_kv_head: int
    head_dim: int
    sequence_len: int
    vocab_size: int
    window_pattern: str
    traits: Architecture = DEFAULT_ARCHITECTURE

    @property
    def padded_vocab_size(self) -> int:
        return padded_vocab(self.vocab_size)

    @property
    def kv_width(self) -> int:
        return self.n_kv_head * self.head_dim

    @property
    def windows(self) -> tuple[int, ...]:
        """Attention window per layer, in tokens: `L` all, `S` the short window; the last is L."""
        short = self.short_window
        pattern = self.window_pattern
        sizes = [
            self.sequence_len if pattern[i % len(pattern)] == "L" else short
            for i in range(self.n_layer)
        ]
        sizes[-1] = self.sequence_len
        return tuple(sizes)

    @property
    def short_window(self) -> int:
        """Tokens in an `S` window: the recipe's, or a quarter of the sequence in blocks of 128."""
        quarter = math.ceil(self.sequence_len / 4 / 128) * 128
        return quarter if self.traits.short_window is None else self.traits.short_window

    @property
    def smear_channels(self) -> int:
        """Input channels of the smear gate; 0 without a smear."""
        return SMEAR_CHANNELS if self.traits.smear else 0

    @property
    def value_embed_layers(self) -> tuple[int, ...]:
        """Layers that own a value embedding: every second one, counted so that the last has it."""
        return tuple(i for i in range(self.n_layer) if i % 2 == (self.n_layer - 1) % 2)


@dataclass(frozen=True)
class ParameterCounts:
    wte: int
    value_embeds: int
    lm_head: int
    transformer: int
    scalars: int

    @property
    def total(self) -> int:
        return self.wte + self.value_embeds + self.lm_head + self.transformer + self.scalars

    @property
    def scaling(self) -> int:
        """Scaling parameters: the count in data:param ratios (docs/recipe.md, Counting)."""
        return self.transformer + self.lm_head


def shape_of(model: ModelSpec, depth: int | None = None) -> ModelShape:
    """The shape for a model spec; `depth` overrides the dial (n_kv_head then equals n_head)."""
    layers = model.depth if depth is None else depth
    width = -(-layers * model.aspect_ratio // model.head_dim) * model.head_dim
    heads = width // model.head_dim
    return ModelShape(
        n_layer=layers,
        n_embd=width,
        n_head=heads,
        n_kv_head=heads if depth is not None or model.n_kv_head is None else model.n_kv_head,
        head_dim=model.head_dim,
        sequence_len=model.sequence_len,
        vocab_size=model.vocab_size,
        window_pattern=model.window_pattern,
        traits=architecture_of(model),
    )


def count_parameters(shape: ModelShape) -> ParameterCounts:
    """Parameters by part, with the padded vocabulary (docs/recipe.md, Counting)."""
    d, kv, vocab = shape.n_embd, shape.kv_width, shape.padded_vocab_size
    gates = len(shape.value_embed_layers) * VE_GATE_CHANNELS * shape.n_kv_head
    q_width = shape.n_head * shape.head_dim
    per_layer = d * q_width + 2 * d * kv + q_width * d + 8 * d * d
    return ParameterCounts(
        wte=vocab * d,
        value_embeds=len(shape.value_embed_layers) * vocab * kv,
        lm_head=vocab * d,
        transformer=shape.n_layer * per_layer + gates,
        scalars=2 * shape.n_layer + 1 + (SMEAR_CHANNELS + 1 if shape.traits.smear else 0),
    )


def flops_per_token(shape: ModelShape) -> int:
    """Training FLOPs per token by the usual count: attention as if it were not causal."""
    attention = sum(
        12 * shape.n_head * shape.head_dim * min(window, shape.sequence_len)
        for window in shape.windows
    )
    return 6 * _linear_weights(shape) + attention


def flops_per_token_causal(shape: ModelShape) -> float:
    """Training FLOPs per token with only the attention actually computed (mean visible keys)."""
    attention = sum(
        12 * shape.n_head * shape.head_dim * _mean_visible(shape.sequence_len, window)
        for window in shape.windows
    )
    return 6 * _linear_weights(shape) + attention


def _linear_weights(shape: ModelShape) -> int:
    counts = count_parameters(shape)
    smear = shape.smear_channels if shape.traits.counts_smear_gate else 0
    return counts.transformer + counts.lm_head + smear


def _mean_visible(length: int, window: int) -> float:
    """Mean number of keys a query sees: itself and up to `window` before it."""
    full = min(window + 1, length)
    return (full * (full + 1) / 2 + (length - full) * full) / length
