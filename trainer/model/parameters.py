"""Every parameter's name, shape and optimizer group, in nanochat's order (docs/recipe.md).

The model and the optimizer groups are built from it, and imported
checkpoints are checked against it.
"""

from __future__ import annotations

from dataclasses import dataclass

from trainer.contract.plan import RATE_OF_GROUP, Hyperparameters
from trainer.contract.shape import VE_GATE_CHANNELS, ModelShape
from trainer.model.names import (
    BACKOUT_LAMBDA,
    LM_HEAD,
    RESID_LAMBDAS,
    SMEAR_GATE,
    SMEAR_LAMBDA,
    WTE,
    X0_LAMBDAS,
    value_embed,
)
from trainer.model.names import attention_weight as attention
from trainer.model.names import mlp_weight as mlp


@dataclass(frozen=True)
class AdamGroup:
    """One AdamW group with the recipe's constants."""

    key: str
    names: tuple[str, ...]
    betas: tuple[float, float]
    weight_decay: float

    def lr(self, hyper: Hyperparameters) -> float:
        """The group's learning rate at the schedule's peak."""
        return getattr(hyper, RATE_OF_GROUP[self.key])

    def settings(self, hyper: Hyperparameters) -> tuple[float, float, float]:
        """(beta1, beta2, weight decay): the recipe's, or those of an import."""
        own = (hyper.adamw or {}).get(self.key)
        if own is None:
            return (*self.betas, self.weight_decay)
        return own.beta1, own.beta2, own.weight_decay


@dataclass(frozen=True)
class MuonGroup:
    """All matrices of one shape, by layer: one stack (K, rows, cols)."""

    names: tuple[str, ...]
    rows: int
    cols: int

    @property
    def key(self) -> str:
        return f"{self.rows}x{self.cols}"

    @property
    def second_shape(self) -> tuple[int, int, int]:
        """NorMuon's buffer: one number per row, or per column of a wide matrix."""
        count = len(self.names)
        return (count, self.rows, 1) if self.rows >= self.cols else (count, 1, self.cols)


def attention_inputs(layer: int) -> tuple[str, str, str]:
    """Names of the matrices of q, k and v."""
    return attention(layer, "c_q"), attention(layer, "c_k"), attention(layer, "c_v")


def parameter_shapes(shape: ModelShape) -> dict[str, tuple[int, ...]]:
    """Shapes of all parameters of the model, by name."""
    vocab, width, kv = shape.padded_vocab_size, shape.n_embd, shape.kv_width
    shapes: dict[str, tuple[int, ...]] = {
        RESID_LAMBDAS: (shape.n_layer,),
        X0_LAMBDAS: (shape.n_layer,),
    }
    if shape.traits.smear:
        shapes[SMEAR_LAMBDA] = (1,)
    shapes |= {BACKOUT_LAMBDA: (1,), WTE: (vocab, width)}
    for layer in range(shape.n_layer):
        shapes |= _layer_shapes(shape, layer)
    shapes[LM_HEAD] = (vocab, width)
    if shape.traits.smear:
        shapes[SMEAR_GATE] = (1, shape.smear_channels)
    return shapes | {value_embed(i): (vocab, kv) for i in shape.value_embed_layers}


def _layer_shapes(shape: ModelShape, layer: int) -> dict[str, tuple[int, ...]]:
    width, kv, q = shape.n_embd, shape.kv_width, shape.n_head * shape.head_dim
    shapes: dict[str, tuple[int, ...]] = {
        attention(layer, "c_q"): (q, width),
        attention(layer, "c_k"): (kv, width),
        attention(layer, "c_v"): (kv, width),
        attention(layer, "c_proj"): (width, q),
    }
    if layer in shape.value_embed_layers:
        shapes[attention(layer, "ve_gate")] = (shape.n_kv_head, VE_GATE_CHANNELS)
    shapes[mlp(layer, "c_fc")] = (4 * width, width)
    shapes[mlp(layer, "c_proj")] = (width, 4 * width)
    return shapes


def table_names(shape: ModelShape) -> tuple[str, ...]:
    """Names of the embedding tables: wte, then the value embeddings by layer."""
    return (WTE, *(value_embed(i) for i in shape.value_embed_layers))


def scalar_names(shape: ModelShape) -> tuple[str, ...]:
    """Names of the scalar parameters, in the order of their numbers."""
    return (RESID_LAMBDAS, X0_LAMBDAS, *_last_scalars(shape))


def _last_scalars(shape: ModelShape) -> tuple[str, ...]:
    smear = (SMEAR_GATE, SMEAR_LAMBDA) if shape.traits.smear else ()
    return (*smear, BACKOUT_LAMBDA)


def adam_groups(shape: ModelShape) -> tuple[AdamGroup, ...]:
    """The AdamW groups, with the recipe's betas and weight decays."""
    tables = tuple(value_embed(i) for i in shape.value_embed_layers)
    return (
        AdamGroup("lm_head", (LM_HEAD,), (0.8, 0.96), 0.01),
        AdamGroup("wte", (WTE,), (0.8, 0.995), 0.001),
        AdamGroup("value_embeds", tables, (0.8, 0.995), 0.01),
        AdamGroup("resid_lambdas", (RESID_LAMBDAS,), (0.8, 0.95), 0.05),
        AdamGroup("x0_lambdas", (X0_LAMBDAS,), (0.96, 0.95), 0.0),
        AdamGroup("scalars", _last_scalars(shape), (0.8, 0.95), 0.0),
    )


def muon_groups(shape: ModelShape) -> tuple[MuonGroup, ...]:
    """One group per shape, in sorted order of shape."""
    by_shape: dict[tuple[int, ...], list[str]] = {}
    for layer in range(shape.n_layer):
        for name, size in _layer_shapes(shape, layer).items():
            by_shape.setdefault(size, []).append(name)
    return tuple(
        MuonGroup(tuple(names), rows, cols) for (rows, cols), names in sorted(by_shape.items())
    )
