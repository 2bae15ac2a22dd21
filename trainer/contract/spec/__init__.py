"""The run spec: a user's request, with every default in one place.

`resolve(body)` merges the body over its preset, and both over the defaults, then validates.
Unknown keys are errors everywhere; `None` means off.
"""

from trainer.contract.spec.data import DataSpec, TokenizerSpec
from trainer.contract.spec.evaluation import EvaluateSpec
from trainer.contract.spec.fields import (
    MAX_STEPS,
    NAME_PATTERN,
    Name,
    ShortText,
    Strict,
    do_not_fit,
)
from trainer.contract.spec.model import AttentionBackend, ModelSpec, padded_vocab
from trainer.contract.spec.optimizer import AdamGroupSpec, GroupsSpec, OptimizerSpec
from trainer.contract.spec.place import PlaceSpec
from trainer.contract.spec.presets import PRESETS
from trainer.contract.spec.run import (
    MAX_RANKS,
    Gpus,
    MetadataKey,
    MetadataValue,
    RankDevice,
    RunSpec,
    Url,
    rank_devices,
    resolve,
)
from trainer.contract.spec.safety import MAX_REWINDS, CheckpointSpec, RecoverySpec
from trainer.contract.spec.scheduling import BudgetSpec, Hours, HoursRule, Priority
from trainer.contract.spec.training import BatchSpec, HorizonSpec, NumericsSpec, ScheduleSpec

__all__ = [
    "MAX_RANKS",
    "MAX_REWINDS",
    "MAX_STEPS",
    "NAME_PATTERN",
    "PRESETS",
    "AdamGroupSpec",
    "AttentionBackend",
    "BatchSpec",
    "BudgetSpec",
    "CheckpointSpec",
    "DataSpec",
    "EvaluateSpec",
    "Gpus",
    "GroupsSpec",
    "HorizonSpec",
    "Hours",
    "HoursRule",
    "MetadataKey",
    "MetadataValue",
    "ModelSpec",
    "Name",
    "NumericsSpec",
    "OptimizerSpec",
    "PlaceSpec",
    "Priority",
    "RankDevice",
    "RecoverySpec",
    "RunSpec",
    "ScheduleSpec",
    "ShortText",
    "Strict",
    "TokenizerSpec",
    "Url",
    "do_not_fit",
    "padded_vocab",
    "rank_devices",
    "resolve",
]
