"""The plan: the arithmetic that follows from a spec. Pure, no torch, well under 50 ms.

`make_plan(spec, context)` answers POST /v1/plan and is stored with the run that the trainer then
follows, so the preview and the run cannot disagree. Sources: RECIPE sections 2, 3 and 5 (the
scaling rules are nanochat's), DESIGN section 1 for the quantities shown.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict

from trainer.contract.schedule import PhaseSchedule, initial_schedule
from trainer.contract.shape import (
    ModelShape,
    count_parameters,
    flops_per_token,
    flops_per_token_causal,
    shape_of,
)
from trainer.contract.spec import ModelSpec, RunSpec

BATCH_REFERENCE = 524_288
REFERENCE_DEPTH = 12
TARGET_RATIO = 12.0
CHINCHILLA_RATIO = 20.0
BEST_FIT_KEPT = 0.65  # best_fit throws about 35 % of the tokens of web text away
FORWARD_SPEEDUP = 3.0  # an evaluation does the forward third of a training step's work
SHARD_TOKENS = 53_000_000  # tokens in one climbmix shard of about 100 MB, as nanochat's vocabulary
SHARD_BYTES = 100_000_000
SAVE_BYTES_PER_SECOND = 500e6
START_SECONDS = 90.0
ASSUMED_UTILISATION = 0.6  # of the dense peak, counting only causal attention; stated in the plan
ASSUMED_CPU_FLOPS = 60e9
EVALUATION_WARNING_SHARE = 0.05


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


@dataclass(frozen=True)
class PlanContext:
    """What is known of the machine. Everything may be unknown: planning needs no device."""

    device_type: Literal["cpu", "cuda", "mps"] = "cuda"
    device_name: str | None = None
    device_memory_bytes: int | None = None
    peak_flops: float | None = None
    peak_source: str | None = None
    tokens_per_second: float | None = None
    throughput_source: str | None = None
    disk_free_bytes: int | None = None
    corpus_tokens: int | None = None


class Parameters(Frozen):
    wte: int
    value_embeds: int
    lm_head: int
    transformer: int
    scalars: int
    total: int
    scaling: int


class Shape(Frozen):
    n_layer: int
    n_embd: int
    n_head: int
    n_kv_head: int
    head_dim: int
    sequence_len: int
    vocab_size: int
    padded_vocab_size: int
    windows: list[int]


class Batch(Frozen):
    """tokens = device_batch_size x sequence_len x accumulation. assumed: a probe may change it."""

    tokens: int
    device_batch_size: int
    sequence_len: int
    accumulation: int
    device_batch_size_assumed: bool


class Hyperparameters(Frozen):
    """As scaled. AdamW rates before the schedule's multiplier; muon weight decay at its peak."""

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


class Horizon(Frozen):
    steps: int
    tokens: int
    ratio: float
    ratio_scaling: float
    chinchilla_ratio: float
    flops_per_token: int
    flops_per_token_causal: float
    flops: float


class Memory(Frozen):
    """Estimated peak device memory in bytes, by part."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    overhead: int
    total: int
    available: int | None


class Disk(Frozen):
    checkpoint_model: int
    checkpoint_optimizer: int
    checkpoint_total: int
    checkpoints_kept: int
    checkpoints_total: int
    download: int
    token_cache: int
    total: int
    available: int | None


class Eta(Frozen):
    """Seconds, by part, and what the rate was taken from."""

    training: float
    evaluation: float
    saving: float
    start_up: float
    total: float
    tokens_per_second: float
    source: str


class Plan(Frozen):
    shape: Shape
    parameters: Parameters
    batch: Batch
    hyperparameters: Hyperparameters
    horizon: Horizon
    schedule: PhaseSchedule
    warmdown_start: int
    memory: Memory
    disk: Disk
    eta: Eta
    crash_loses_at_most_seconds: float
    max_shards: int | None
    warnings: list[str]


def make_plan(spec: RunSpec, context: PlanContext | None = None) -> Plan:
    """Everything that follows from `spec`. Raises ValueError where the numbers cannot be met."""
    context = context or PlanContext()
    shape = shape_of(spec.model)
    counts = count_parameters(shape)
    batch = plan_batch(spec, shape, context)
    horizon = _horizon(spec, shape, batch.tokens)
    schedule = initial_schedule(
        horizon.steps,
        spec.schedule.warmup_steps,
        spec.schedule.warmdown_ratio,
        spec.schedule.warmdown_shape,
        spec.schedule.final_lr_frac,
    )
    memory = estimate_memory(shape, batch, spec, context)
    eta = estimate_eta(spec, shape, batch, 0, horizon.steps, context)
    shards = shards_for(spec, horizon.tokens)
    disk = _disk(spec, shape, horizon, shards, context)
    plan = Plan(
        shape=describe(shape),
        parameters=Parameters(**vars(counts), total=counts.total, scaling=counts.scaling),
        batch=batch,
        hyperparameters=scaled_hyperparameters(spec, shape, batch.tokens),
        horizon=horizon,
        schedule=schedule,
        warmdown_start=schedule.warmdown_start,
        memory=memory,
        disk=disk,
        eta=eta,
        crash_loses_at_most_seconds=crash_loss(spec, eta, horizon.steps),
        max_shards=shards,
        warnings=[],
    )
    return plan.model_copy(update={"warnings": _warnings(spec, plan, context)})


def describe(shape: ModelShape) -> Shape:
    return Shape(
        n_layer=shape.n_layer,
        n_embd=shape.n_embd,
        n_head=shape.n_head,
        n_kv_head=shape.n_kv_head,
        head_dim=shape.head_dim,
        sequence_len=shape.sequence_len,
        vocab_size=shape.vocab_size,
        padded_vocab_size=shape.padded_vocab_size,
        windows=list(shape.windows),
    )


# --- batch, hyperparameters, horizon -------------------------------------------------------------


def plan_batch(spec: RunSpec, shape: ModelShape, context: PlanContext) -> Batch:
    tokens = spec.batch.tokens if isinstance(spec.batch.tokens, int) else auto_batch(spec.model)
    rows_total, rest = divmod(tokens, shape.sequence_len)
    if rest or rows_total == 0:
        raise ValueError(
            f"a batch of {tokens:,} tokens is not a multiple of sequence_len {shape.sequence_len:,}"
        )
    asked = spec.batch.device_batch_size
    rows = asked if isinstance(asked, int) else _assumed_rows(spec, shape, rows_total, context)
    if rows_total % rows:
        raise ValueError(
            f"batch of {tokens:,} tokens = {rows_total} rows of {shape.sequence_len:,} "
            f"is not divisible by device_batch_size {rows}"
        )
    return Batch(
        tokens=tokens,
        device_batch_size=rows,
        sequence_len=shape.sequence_len,
        accumulation=rows_total // rows,
        device_batch_size_assumed=not isinstance(asked, int),
    )


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


def _horizon(spec: RunSpec, shape: ModelShape, batch_tokens: int) -> Horizon:
    counts = count_parameters(shape)
    per_token = flops_per_token(shape)
    ask = spec.horizon
    if ask.steps:
        steps = ask.steps
    elif ask.flops:
        steps = round(ask.flops / (per_token * batch_tokens))
    elif ask.tokens:
        steps = ask.tokens // batch_tokens
    else:
        steps = int((ask.data_param_ratio or TARGET_RATIO) * counts.scaling) // batch_tokens
    if steps < 1:
        raise ValueError(
            f"the horizon is shorter than one step: a step takes {batch_tokens:,} tokens"
        )
    tokens = steps * batch_tokens
    return Horizon(
        steps=steps,
        tokens=tokens,
        ratio=tokens / counts.total,
        ratio_scaling=tokens / counts.scaling,
        chinchilla_ratio=CHINCHILLA_RATIO,
        flops_per_token=per_token,
        flops_per_token_causal=flops_per_token_causal(shape),
        flops=float(tokens) * per_token,
    )


def _assumed_rows(spec: RunSpec, shape: ModelShape, rows_total: int, context: PlanContext) -> int:
    """The largest divisor of the batch's rows, at most 64, whose estimate fits the device."""
    limit = 8 if context.device_type == "cpu" or context.device_memory_bytes is None else 64
    fitting = [r for r in range(1, min(rows_total, limit) + 1) if rows_total % r == 0]
    memory = context.device_memory_bytes
    for rows in reversed(fitting):
        trial = Batch(
            tokens=rows_total * shape.sequence_len,
            device_batch_size=rows,
            sequence_len=shape.sequence_len,
            accumulation=rows_total // rows,
            device_batch_size_assumed=True,
        )
        if memory is None or estimate_memory(shape, trial, spec, context).total <= 0.9 * memory:
            return rows
    return 1


# --- memory, disk, time --------------------------------------------------------------------------


def table_bytes(spec: RunSpec, context: PlanContext) -> int:
    """Bytes per element in which embedding tables are stored: the compute dtype's, fp16 aside."""
    return 2 if compute_dtype(spec, context) == "bf16" else 4


def compute_dtype(spec: RunSpec, context: PlanContext) -> Literal["bf16", "fp16", "fp32"]:
    asked = spec.numerics.precision
    if asked == "auto":
        return "bf16" if context.device_type == "cuda" else "fp32"
    return "bf16" if asked in ("bf16", "fp8") else asked


def estimate_memory(shape: ModelShape, batch: Batch, spec: RunSpec, context: PlanContext) -> Memory:
    """Peak device memory by part (SPEED: about ten tensors kept per layer, chunked head)."""
    counts = count_parameters(shape)
    table, act = table_bytes(spec, context), 4 if compute_dtype(spec, context) == "fp32" else 2
    tables = counts.wte + counts.value_embeds
    dense = counts.total - tables
    tokens = batch.device_batch_size * shape.sequence_len
    weights = tables * table + dense * 4 + (dense * 2 if act == 2 else 0)
    gradients = dense * 4 + tables * 4
    optimizer = 2 * tables * table + 2 * counts.lm_head * 4 + counts.transformer * 4
    kept_per_layer = 6 * shape.n_embd + 2 * shape.kv_width + 2 * 4 * shape.n_embd
    activations = tokens * act * (shape.n_layer * kept_per_layer + 4 * shape.n_embd)
    logits = min(tokens, 2048) * shape.padded_vocab_size * (act + 4)
    overhead = 600_000_000 if context.device_type == "cuda" else 300_000_000
    total = weights + gradients + optimizer + activations + logits + overhead
    return Memory(
        weights=weights,
        gradients=gradients,
        optimizer=optimizer,
        activations=activations,
        logits=logits,
        overhead=overhead,
        total=total,
        available=context.device_memory_bytes,
    )


def checkpoint_bytes(spec: RunSpec, shape: ModelShape, context: PlanContext) -> tuple[int, int]:
    """(model, optimizer) bytes of one checkpoint: tables and their moments in the table dtype."""
    counts = count_parameters(shape)
    table = table_bytes(spec, context)
    tables = counts.wte + counts.value_embeds
    model = tables * table + (counts.total - tables) * 4
    small = counts.scalars
    optimizer = 2 * tables * table + 2 * (counts.lm_head + small) * 4 + counts.transformer * 4
    return model, optimizer + _second_momentum(shape)


def _second_momentum(shape: ModelShape) -> int:
    """Bytes of NorMuon's second buffers: one float per row or column, along the longer side."""
    d, kv, q = shape.n_embd, shape.kv_width, shape.n_head * shape.head_dim
    per_layer = max(q, d) + 2 * max(kv, d) + max(q, d) + 2 * 4 * d
    return 4 * shape.n_layer * per_layer


def shards_for(spec: RunSpec, tokens: int) -> int | None:
    """Training shards to fetch so that `tokens` fit in one epoch; None when not by the shard."""
    if spec.data.source != "hf":
        return None
    if isinstance(spec.data.max_shards, int):
        return spec.data.max_shards
    kept = BEST_FIT_KEPT if spec.data.packing == "best_fit" else 1.0
    return math.ceil(tokens / (SHARD_TOKENS * kept)) + 1


def _disk(
    spec: RunSpec, shape: ModelShape, horizon: Horizon, shards: int | None, context: PlanContext
) -> Disk:
    model, optimizer = checkpoint_bytes(spec, shape, context)
    every = spec.checkpoint.keep_every
    # one being written, the newest ones, the pinned one at the warmdown, the best by val bpb
    kept = spec.checkpoint.keep_last + 3 + (horizon.steps // every if every else 0)
    download = (shards or 0) * SHARD_BYTES
    width = 2 if shape.vocab_size <= 65_536 else 4
    cache = (shards or 0) * SHARD_TOKENS * width
    total_one = model + optimizer
    return Disk(
        checkpoint_model=model,
        checkpoint_optimizer=optimizer,
        checkpoint_total=total_one,
        checkpoints_kept=kept,
        checkpoints_total=kept * total_one,
        download=download,
        token_cache=cache,
        total=kept * total_one + download + cache,
        available=context.disk_free_bytes,
    )


def throughput(shape: ModelShape, context: PlanContext) -> tuple[float, str]:
    """(tokens per second, source): measured if there is one, else from the device's peak."""
    if context.tokens_per_second:
        return context.tokens_per_second, context.throughput_source or "given"
    per_token = flops_per_token_causal(shape)
    if context.device_type == "cuda" and context.peak_flops:
        rate = ASSUMED_UTILISATION * context.peak_flops / per_token
        name = context.device_name or "the device"
        return rate, (
            f"assumed: {ASSUMED_UTILISATION:.0%} of {context.peak_flops / 1e12:.1f} TFLOP/s "
            f"({name}, {context.peak_source or 'dense bf16 peak'})"
        )
    flops = context.peak_flops or ASSUMED_CPU_FLOPS
    return flops / per_token, f"assumed: {flops / 1e9:.0f} GFLOP/s, no measurement on this device"


def estimate_eta(
    spec: RunSpec,
    shape: ModelShape,
    batch: Batch,
    start_step: int,
    end_step: int,
    context: PlanContext,
) -> Eta:
    """Seconds from start_step to end_step: training, evaluation, saving, start-up."""
    rate, source = throughput(shape, context)
    training = (end_step - start_step) * batch.tokens / rate
    evaluations = _times_due(spec.evaluate.bpb_every, start_step, end_step)
    per_eval = batch.device_batch_size * shape.sequence_len
    eval_tokens = max(1, spec.evaluate.eval_tokens // per_eval) * per_eval
    evaluation = evaluations * eval_tokens / (FORWARD_SPEEDUP * rate)
    model, optimizer = checkpoint_bytes(spec, shape, context)
    saves = _saves(spec, training, end_step - start_step)
    # written in the background; a run waits for the last one only
    saving = (model + optimizer) / SAVE_BYTES_PER_SECOND + saves * 0.12 * (model + optimizer) / 1e9
    return Eta(
        training=training,
        evaluation=evaluation,
        saving=saving,
        start_up=START_SECONDS if context.device_type == "cuda" else 10.0,
        total=training
        + evaluation
        + saving
        + (START_SECONDS if context.device_type == "cuda" else 10.0),
        tokens_per_second=rate,
        source=source,
    )


def crash_loss(spec: RunSpec, eta: Eta, steps: int) -> float:
    """The most training seconds a crash can throw away: the longest time between two saves."""
    every = [eta.training]
    if spec.checkpoint.every_seconds:
        every.append(spec.checkpoint.every_seconds)
    if spec.checkpoint.every_steps and steps:
        every.append(spec.checkpoint.every_steps * eta.training / steps)
    return min(every)


def _times_due(every: int | Literal["end"] | None, start: int, end: int) -> int:
    if every is None:
        return 0
    if every == "end":
        return 1
    return (end // every) - (start // every) + (1 if end % every else 0)


def _saves(spec: RunSpec, training_seconds: float, steps: int) -> int:
    by_time = (
        training_seconds / spec.checkpoint.every_seconds if spec.checkpoint.every_seconds else 0
    )
    by_step = steps / spec.checkpoint.every_steps if spec.checkpoint.every_steps else 0
    return int(max(by_time, by_step)) + 1


# --- warnings ------------------------------------------------------------------------------------


def _warnings(spec: RunSpec, plan: Plan, context: PlanContext) -> list[str]:
    found = []
    share = plan.eta.evaluation / max(1e-9, plan.eta.total)
    if share > EVALUATION_WARNING_SHARE:
        found.append(
            f"evaluation takes {share:.0%} of the time ({hours(plan.eta.evaluation)} of "
            f"{hours(plan.eta.total)}): raise evaluate.bpb_every or lower evaluate.eval_tokens"
        )
    if context.corpus_tokens:
        epochs = plan.horizon.tokens / max(1, context.corpus_tokens)
        if epochs > 1:
            found.append(
                f"the run takes {plan.horizon.tokens:,} tokens and the corpus has about "
                f"{context.corpus_tokens:,}: {epochs:.1f} epochs over the same text"
            )
    wanted = shards_for(
        spec.model_copy(update={"data": spec.data.model_copy(update={"max_shards": "auto"})}),
        plan.horizon.tokens,
    )
    if wanted and isinstance(spec.data.max_shards, int) and spec.data.max_shards < wanted:
        found.append(
            f"max_shards {spec.data.max_shards} is less than the {wanted} shards one epoch needs: "
            f"text will repeat about {wanted / spec.data.max_shards:.1f} times"
        )
    if plan.warmdown_start < plan.horizon.steps:
        found.append(
            f"warmdown begins at step {plan.warmdown_start:,} of {plan.horizon.steps:,}; an extend "
            "from the end raises the learning rate again, one from the pinned checkpoint at step "
            f"{plan.warmdown_start:,} does not"
        )
    if plan.memory.available and plan.memory.total > plan.memory.available:
        found.append(
            f"about {gigabytes(plan.memory.total)} of device memory needed, "
            f"{gigabytes(plan.memory.available)} there: lower batch.device_batch_size"
        )
    if plan.disk.available is not None and plan.disk.total > plan.disk.available:
        found.append(
            f"about {gigabytes(plan.disk.total)} of disk needed, "
            f"{gigabytes(plan.disk.available)} free: keep fewer checkpoints or shards"
        )
    if spec.schedule.warmup_steps >= plan.horizon.steps:
        found.append(
            f"warm-up ({spec.schedule.warmup_steps} steps) is as long as the run "
            f"({plan.horizon.steps} steps): the learning rate never reaches its peak"
        )
    return found


def hours(seconds: float) -> str:
    """A duration for people: '42.5 h', '12 min', '8 s'."""
    if seconds >= 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.0f} min" if seconds >= 60 else f"{seconds:.0f} s"


def gigabytes(num_bytes: float) -> str:
    """Decimal gigabytes for people, megabytes when small."""
    return f"{num_bytes / 1e9:.2f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.0f} MB"
