"""The plan's fields, in the order of the answer. All are frozen: a plan is stored with its run."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from trainer.contract.recipe import DEFAULT, DEFAULT_MUON, MuonName, RecipeName
from trainer.contract.schedule import PhaseSchedule


class CannotPlan(ValueError):
    """The spec cannot be planned. `field`: dotted name of the setting to change."""

    def __init__(self, field: str, sentence: str) -> None:
        super().__init__(sentence)
        self.field = field


class PlanPart(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Parameters(PlanPart):
    wte: int
    """Parameters of the token embedding."""
    value_embeds: int
    """Parameters of the value embeddings."""
    lm_head: int
    """Parameters of the output projection."""
    transformer: int
    """Parameters of the matrices inside the layers."""
    scalars: int
    """Scalar parameters."""
    total: int
    """All parameters."""
    scaling: int
    """Parameters that data:param ratios count: transformer and lm_head."""


class PlannedShape(PlanPart):
    n_layer: int
    """Number of layers."""
    n_embd: int
    """Model width, in channels."""
    n_head: int
    """Number of query heads."""
    n_kv_head: int
    """Number of key/value heads."""
    head_dim: int
    """Channels per head."""
    sequence_len: int
    vocab_size: int
    """Tokens in the vocabulary."""
    padded_vocab_size: int
    """Rows of the embedding tables: vocab_size rounded up to a multiple of 64."""
    windows: list[int]
    """Attention window of each layer, in tokens."""


class BatchPlan(PlanPart):
    """tokens = device_batch_size x sequence_len x accumulation. assumed: a probe may change it."""

    tokens: int
    """Tokens per optimizer step."""
    device_batch_size: int
    sequence_len: int
    accumulation: int
    """Forward passes per optimizer step."""
    device_batch_size_assumed: bool
    """Whether a measurement at the first start may change the rows."""


class AdamSettings(PlanPart):
    """Betas and weight decay of one AdamW group, where they are not the recipe's."""

    beta1: float
    """Decay rate of the first moment."""
    beta2: float
    """Decay rate of the second moment."""
    weight_decay: float
    """Decoupled weight decay of the group."""


class Hyperparameters(PlanPart):
    """Scaled hyperparameters: AdamW rates before the schedule, Muon's weight decay at its peak."""

    lr_factor: float
    """Factor of the learning rates for the batch size."""
    width_factor: float
    """Factor of lm_head's learning rate for the model width."""
    matrix_lr: float
    """Muon's learning rate at its peak."""
    embedding_lr: float
    """Learning rate of the token embedding at its peak."""
    value_embedding_lr: float
    """Learning rate of the value embeddings at its peak."""
    unembedding_lr: float
    """Learning rate of lm_head at its peak."""
    resid_lr: float
    """Learning rate of the residual scales at its peak."""
    x0_lr: float
    """Learning rate of the input scales at its peak."""
    smear_lr: float
    """Learning rate of the smear and backout scalars at its peak."""
    weight_decay: float
    """Muon's weight decay at its peak, scaled."""
    table_width_factor: float | None = None
    """Factor of the tables' learning rates for the width; null is that of lm_head."""
    muon: MuonName = DEFAULT_MUON
    """Muon variant."""
    adamw: dict[str, AdamSettings] | None = None
    """Settings per AdamW group that differ from the recipe's, as an import brought them along."""


class Horizon(PlanPart):
    steps: int
    tokens: int
    ratio: float
    """Tokens per parameter."""
    ratio_scaling: float
    """Tokens per scaling parameter."""
    chinchilla_ratio: float
    """Tokens per parameter by the Chinchilla rule, for comparison."""
    flops_per_token: int
    """FLOPs per token, attention counted as if not causal."""
    flops_per_token_causal: float
    """FLOPs per token with the attention really computed."""
    flops: float


class MemoryEstimate(PlanPart):
    """Estimated peak device memory in bytes, by part; of each device if there are several."""

    weights: int
    """Bytes of the weights."""
    gradients: int
    """Bytes of the gradients."""
    optimizer: int
    """Bytes of the optimizer's state."""
    activations: int
    """Bytes kept for the backward pass."""
    logits: int
    """Bytes of the loss head's chunk."""
    overhead: int
    """Bytes of everything else, such as the device context."""
    total: int
    """Estimated peak, in bytes."""
    available: int | None
    """Bytes the device has; null when unknown."""
    measured: int | None = None
    """Peak of an earlier run of this shape, with these rows on this device, in bytes."""
    error: float = 1.25
    """Factor by which the true peak may exceed the estimate."""
    exchange: int = 0
    """Bytes of waiting lanes and of buffers for the exchange."""

    @property
    def expected(self) -> int:
        return self.total if self.measured is None else self.measured


class Disk(PlanPart):
    checkpoint_model: int
    """Bytes of a checkpoint's weights."""
    checkpoint_optimizer: int
    """Bytes of a checkpoint's optimizer state."""
    checkpoint_total: int
    """Bytes of a checkpoint."""
    checkpoints_kept: int
    """Largest number of checkpoints kept at once."""
    checkpoints_total: int
    """Bytes of those checkpoints."""
    download: int
    """Bytes to download."""
    token_cache: int
    """Bytes of the token cache."""
    total: int
    """Total, in bytes."""
    available: int | None
    """Free space, in bytes; null when unknown."""


class Eta(PlanPart):
    """Estimated time in seconds, by part, and the source of the rate."""

    training: float
    evaluation: float
    saving: float
    start_up: float
    """Time until the first step, in seconds."""
    total: float
    """Total time, in seconds."""
    tokens_per_second: float
    source: str
    """Source of the rate."""


class ExchangePlan(PlanPart):
    """Exchange between devices: bytes each sends per step, at an assumed bandwidth."""

    devices: int
    """Number of devices."""
    lanes: int
    """Groups of micro-batches summed in a fixed tree."""
    bytes_per_step: int
    """Bytes that each device sends in a step."""
    bytes_per_second: float
    """Bandwidth assumed for each device, in bytes per second."""
    seconds_per_step: float
    """Time that the exchange takes in a step, in seconds."""
    share_of_step: float
    """Share of a step that the exchange takes, from 0 to 1."""
    enough_tokens: int
    """Tokens per step from which the exchange takes at most a fifth of the step."""


class RecipeChoice(PlanPart):
    """Recipe of the run, and its differences from the default one in words."""

    model: RecipeName = DEFAULT
    """Recipe of the architecture."""
    optimizer: RecipeName = DEFAULT
    """Recipe of the optimizer's rules."""
    changes: list[str] = []
    """Differences from the default recipe, one sentence each."""


class Plan(PlanPart):
    shape: PlannedShape
    """Dimensions of the model."""
    parameters: Parameters
    batch: BatchPlan
    """Batch."""
    hyperparameters: Hyperparameters
    """Hyperparameters, scaled."""
    horizon: Horizon
    """Training length and what follows from it."""
    schedule: PhaseSchedule
    warmdown_start: int
    memory: MemoryEstimate
    """Estimated peak device memory, in bytes."""
    disk: Disk
    """Estimated disk space, in bytes."""
    eta: Eta
    crash_loses_at_most_seconds: float
    """Most training time that a crash can lose, in seconds."""
    max_shards: int | None
    """Shards of the data set that are downloaded; null is all."""
    warnings: list[str]
    recipe: RecipeChoice = RecipeChoice()
    """Recipe the run is trained by."""
    exchange: ExchangePlan | None = None
    """What several devices send each other in a step; null for one device."""
    num_devices: int = 1
    """Devices that train together; what `gpus: all` stands for on this machine."""
