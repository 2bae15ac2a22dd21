"""Learning rates, decays and the Muon variant."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from trainer.contract.recipe import MuonName, RecipeName
from trainer.contract.spec.fields import LearningRate, Strict


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
