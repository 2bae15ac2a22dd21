"""The plan's fields, in the order of the answer. All frozen: a plan is stored with its run."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from trainer.contract.recipe import DEFAULT, DEFAULT_MUON, MuonName, RecipeName
from trainer.contract.schedule import PhaseSchedule


class CannotPlan(ValueError):
    """Numbers that cannot be met. `field` is the dotted name of what to change in the spec."""

    def __init__(self, field: str, sentence: str) -> None:
        super().__init__(sentence)
        self.field = field


class PlanPart(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Parameters(PlanPart):
    wte: int
    value_embeds: int
    lm_head: int
    transformer: int
    scalars: int
    total: int
    scaling: int


class PlannedShape(PlanPart):
    n_layer: int
    n_embd: int
    n_head: int
    n_kv_head: int
    head_dim: int
    sequence_len: int
    vocab_size: int
    padded_vocab_size: int
    windows: list[int]


class BatchPlan(PlanPart):
    """tokens = device_batch_size x sequence_len x accumulation. assumed: a probe may change it."""

    tokens: int
    device_batch_size: int
    sequence_len: int
    accumulation: int
    device_batch_size_assumed: bool


class AdamSettings(PlanPart):
    """Betas and weight decay of one AdamW group, where they are not the recipe's."""

    beta1: float
    beta2: float
    weight_decay: float


class Hyperparameters(PlanPart):
    """As scaled. AdamW rates before the schedule's multiplier; muon weight decay at its peak.

    width_factor: of lm_head's rate. table_width_factor: of the tables' (None: the same). muon: the
    variant. adamw: settings of groups that an import brought along, by group.
    """

    lr_factor: float
    width_factor: float
    matrix_lr: float
    embedding_lr: float
    value_embedding_lr: float
    unembedding_lr: float
    resid_lr: float
    x0_lr: float
    smear_lr: float
    weight_decay: float
    table_width_factor: float | None = None
    muon: MuonName = DEFAULT_MUON
    adamw: dict[str, AdamSettings] | None = None


class Horizon(PlanPart):
    steps: int
    tokens: int
    ratio: float
    ratio_scaling: float
    chinchilla_ratio: float
    flops_per_token: int
    flops_per_token_causal: float
    flops: float


class MemoryEstimate(PlanPart):
    """Estimated peak device memory in bytes, by part.

    measured: what an earlier run of this shape, with these rows on this device, took at its peak.
    error: the factor by which the estimate may be below the truth. exchange: of lanes and of what
    passes between devices; the estimate is that of each device.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    overhead: int
    total: int
    available: int | None
    measured: int | None = None
    error: float = 1.25
    exchange: int = 0

    @property
    def expected(self) -> int:
        return self.total if self.measured is None else self.measured


class Disk(PlanPart):
    checkpoint_model: int
    checkpoint_optimizer: int
    checkpoint_total: int
    checkpoints_kept: int
    checkpoints_total: int
    download: int
    token_cache: int
    total: int
    available: int | None


class Eta(PlanPart):
    """Seconds, by part, and what the rate was taken from."""

    training: float
    evaluation: float
    saving: float
    start_up: float
    total: float
    tokens_per_second: float
    source: str


class ExchangePlan(PlanPart):
    """What several devices send each other in a step, each of them, at an assumed bandwidth.

    enough_tokens: tokens a step for which it takes a fifth of the time at most.
    """

    devices: int
    lanes: int
    bytes_per_step: int
    bytes_per_second: float
    seconds_per_step: float
    share_of_step: float
    enough_tokens: int


class RecipeChoice(PlanPart):
    """Which recipe the run is trained by, and what differs from the default one, in words."""

    model: RecipeName = DEFAULT
    optimizer: RecipeName = DEFAULT
    changes: list[str] = []


class Plan(PlanPart):
    shape: PlannedShape
    parameters: Parameters
    batch: BatchPlan
    hyperparameters: Hyperparameters
    horizon: Horizon
    schedule: PhaseSchedule
    warmdown_start: int
    memory: MemoryEstimate
    disk: Disk
    eta: Eta
    crash_loses_at_most_seconds: float
    max_shards: int | None
    warnings: list[str]
    recipe: RecipeChoice = RecipeChoice()
    exchange: ExchangePlan | None = None
    num_devices: int = 1
