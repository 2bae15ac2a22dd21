"""Scaling rules: batch, learning rates and weight decay by model size (docs/recipe.md, Scaling)."""

from __future__ import annotations

import math

from trainer.contract.plan.answer import AdamSettings, Hyperparameters
from trainer.contract.recipe import rules_of
from trainer.contract.shape import ModelShape, count_parameters, shape_of
from trainer.contract.spec import GroupsSpec, ModelSpec, RunSpec

BATCH_REFERENCE = 524_288
REFERENCE_DEPTH = 12
WIDTH_REFERENCE = 768
TARGET_RATIO = 12.0
# each AdamW group, and the field of Hyperparameters with its learning rate
RATE_OF_GROUP = {
    "lm_head": "unembedding_lr",
    "wte": "embedding_lr",
    "value_embeds": "value_embedding_lr",
    "resid_lambdas": "resid_lr",
    "x0_lambdas": "x0_lr",
    "scalars": "smear_lr",
}


def auto_batch(model: ModelSpec) -> int:
    """2^round(log2(B_ref (D/D_ref)^0.383)) tokens (docs/recipe.md, Scaling; arXiv 2505.13738)."""
    ratio = _tokens_at_ratio(model) / _tokens_at_ratio(model, REFERENCE_DEPTH)
    return 2 ** round(math.log2(BATCH_REFERENCE * ratio**0.383))


def scaled_hyperparameters(spec: RunSpec, shape: ModelShape, batch_tokens: int) -> Hyperparameters:
    """Rates x sqrt(B/B_ref); weight decay x sqrt(B/B_ref) D_ref/D (docs/recipe.md, Scaling).

    How the rates of head and tables scale with the width is a rule of the optimizer's recipe.
    """
    opt, rules = spec.optimizer, rules_of(spec.model, spec.optimizer)
    factor = math.sqrt(batch_tokens / BATCH_REFERENCE)
    head = (shape.n_embd / WIDTH_REFERENCE) ** rules.head_width
    table = (shape.n_embd / WIDTH_REFERENCE) ** rules.table_width
    data_ratio = _tokens_at_ratio(spec.model, REFERENCE_DEPTH) / _tokens_at_ratio(spec.model)
    scaled = Hyperparameters(
        lr_factor=factor,
        width_factor=head,
        matrix_lr=opt.matrix_lr * factor,
        embedding_lr=opt.embedding_lr * factor * table,
        value_embedding_lr=opt.embedding_lr * factor * table * 0.5,
        unembedding_lr=opt.unembedding_lr * factor * head,
        resid_lr=opt.scalar_lr * factor * 0.01,
        x0_lr=opt.scalar_lr * factor,
        smear_lr=0.2,
        weight_decay=opt.weight_decay * factor * data_ratio,
        table_width_factor=None if table == head else table,
        muon=rules.muon,
    )
    return _as_imported(scaled, opt.groups) if opt.groups else scaled


def _as_imported(scaled: Hyperparameters, groups: GroupsSpec) -> Hyperparameters:
    """The scaled values, replaced by the spec's own values for single groups."""
    stated = {key: getattr(groups, key) for key in RATE_OF_GROUP if getattr(groups, key)}
    rates = {RATE_OF_GROUP[key]: group.lr for key, group in stated.items()}
    if groups.matrix_lr is not None:
        rates["matrix_lr"] = groups.matrix_lr
    settings = {
        key: AdamSettings(beta1=g.beta1, beta2=g.beta2, weight_decay=g.weight_decay)
        for key, g in stated.items()
    }
    return scaled.model_copy(update={**rates, "adamw": settings or None})


def _tokens_at_ratio(model: ModelSpec, depth: int | None = None) -> float:
    return TARGET_RATIO * count_parameters(shape_of(model, depth)).scaling
