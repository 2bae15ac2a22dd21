"""How batch, rates and weight decay scale with the model (RECIPE section 3)."""

from __future__ import annotations

import math

from trainer.contract.plan.answer import Hyperparameters
from trainer.contract.shape import ModelShape, count_parameters, shape_of
from trainer.contract.spec import ModelSpec, RunSpec

BATCH_REFERENCE = 524_288
REFERENCE_DEPTH = 12
TARGET_RATIO = 12.0


def auto_batch(model: ModelSpec) -> int:
    """2^round(log2(B_ref (D/D_ref)^0.383)) tokens (RECIPE section 3; arXiv 2505.13738)."""
    ratio = _tokens_at_ratio(model) / _tokens_at_ratio(model, REFERENCE_DEPTH)
    return 2 ** round(math.log2(BATCH_REFERENCE * ratio**0.383))


def scaled_hyperparameters(spec: RunSpec, shape: ModelShape, batch_tokens: int) -> Hyperparameters:
    """Rates x sqrt(B/B_ref); weight decay x sqrt(B/B_ref) D_ref/D (RECIPE section 3)."""
    opt = spec.optimizer
    factor = math.sqrt(batch_tokens / BATCH_REFERENCE)
    width = (shape.n_embd / 768) ** -0.5
    data_ratio = _tokens_at_ratio(spec.model, REFERENCE_DEPTH) / _tokens_at_ratio(spec.model)
    return Hyperparameters(
        lr_factor=factor,
        width_factor=width,
        matrix_lr=opt.matrix_lr * factor,
        embedding_lr=opt.embedding_lr * factor * width,
        value_embedding_lr=opt.embedding_lr * factor * width * 0.5,
        unembedding_lr=opt.unembedding_lr * factor * width,
        resid_lr=opt.scalar_lr * factor * 0.01,
        x0_lr=opt.scalar_lr * factor,
        smear_lr=0.2,
        weight_decay=opt.weight_decay * factor * data_ratio,
    )


def _tokens_at_ratio(model: ModelSpec, depth: int | None = None) -> float:
    return TARGET_RATIO * count_parameters(shape_of(model, depth)).scaling
