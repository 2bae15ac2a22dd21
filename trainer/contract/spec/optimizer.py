"""Learning rates, decays and the Muon variant."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from trainer.contract.recipe import MuonName, RecipeName
from trainer.contract.spec.fields import LearningRate, Strict


class AdamGroupSpec(Strict):
    """AdamW settings of one parameter group that differ from the recipe's.

    lr: at the schedule's peak, not scaled further.
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
    """Settings from an imported optimizer, by parameter group.

    scalars: smear gate, smear_lambda and backout_lambda. matrix_lr: Muon's, not scaled further.
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

    recipe: generation of the scaling rules; None is the model's. muon: overrides its Muon variant.
    groups: settings from an imported optimizer that replace the scaled ones.
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
