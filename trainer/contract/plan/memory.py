"""Peak device memory, estimated part by part."""

from __future__ import annotations

from typing import Literal

from trainer.contract.plan.answer import Batch, Memory
from trainer.contract.plan.context import PlanContext
from trainer.contract.recipe import architecture_of
from trainer.contract.shape import ModelShape, count_parameters
from trainer.contract.spec import RunSpec

# Tokens whose logits exist at a time. On the CPU the best of 128, 256, 512 and 1024 on two threads:
# the chunk stays in cache.
CHUNK_TOKENS = {"cpu": 256, "mps": 256, "cuda": 4096}
# The estimate's parts are counted, but what a compiled block keeps for its backward pass is known
# for some shapes only: beyond this factor of the device's memory nothing can be kept small enough.
ESTIMATE_ERROR = 1.25
NEAR_THE_LIMIT = 0.9


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
    logits = min(tokens, CHUNK_TOKENS[context.device_type]) * shape.padded_vocab_size * (act + 4)
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
        measured=_measured(batch, context),
    )


def cannot_fit(memory: Memory) -> bool:
    """Whether a run would surely end out of memory: a measured peak, or an estimate far beyond."""
    if memory.available is None:
        return False
    if memory.measured is not None:
        return memory.measured > memory.available
    return memory.total > ESTIMATE_ERROR * memory.available


def is_near_the_limit(memory: Memory) -> bool:
    return memory.available is not None and memory.expected > NEAR_THE_LIMIT * memory.available


def _measured(batch: Batch, context: PlanContext) -> int | None:
    """The peak of an earlier run, if it took as many rows a pass."""
    if context.device_type != "cuda" or context.measured_rows != batch.device_batch_size:
        return None
    return context.measured_peak_bytes


def table_bytes(spec: RunSpec, context: PlanContext) -> int:
    """Bytes per element of the tables: float32 by some recipes, else of bf16 what it takes."""
    if architecture_of(spec.model).tables == "float32":
        return 4
    return 2 if compute_dtype(spec, context) == "bf16" else 4


def compute_dtype(spec: RunSpec, context: PlanContext) -> Literal["bf16", "fp16", "fp32"]:
    asked = spec.numerics.precision
    if asked == "auto":
        return "bf16" if context.device_type == "cuda" else "fp32"
    return "bf16" if asked == "fp8" else asked
