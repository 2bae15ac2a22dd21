"""The plan: everything computed from a spec. Pure, without torch, well under 50 ms.

`make_plan(spec, context)` answers POST /v1/plan and is stored with the run that the trainer then
follows, so the preview and the run cannot disagree. Sources: docs/recipe.md (the
scaling rules are nanochat's).
"""

from trainer.contract.plan.answer import (
    AdamSettings,
    BatchPlan,
    CannotPlan,
    Disk,
    Eta,
    Horizon,
    Hyperparameters,
    MemoryEstimate,
    Parameters,
    Plan,
    PlannedShape,
    RecipeChoice,
)
from trainer.contract.plan.build import make_plan
from trainer.contract.plan.context import PlanContext
from trainer.contract.plan.disk import shards_for
from trainer.contract.plan.eta import TimeLeft, estimate_eta, time_left
from trainer.contract.plan.horizon import CHINCHILLA_RATIO
from trainer.contract.plan.scaling import RATE_OF_GROUP, auto_batch

__all__ = [
    "CHINCHILLA_RATIO",
    "RATE_OF_GROUP",
    "AdamSettings",
    "BatchPlan",
    "CannotPlan",
    "Disk",
    "Eta",
    "Horizon",
    "Hyperparameters",
    "MemoryEstimate",
    "Parameters",
    "Plan",
    "PlanContext",
    "PlannedShape",
    "RecipeChoice",
    "TimeLeft",
    "auto_batch",
    "estimate_eta",
    "make_plan",
    "shards_for",
    "time_left",
]
