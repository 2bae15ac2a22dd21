"""Device memory estimate: peak, part by part."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Literal

from trainer.contract.plan.answer import BatchPlan, MemoryEstimate
from trainer.contract.plan.context import PlanContext
from trainer.contract.recipe import architecture_of
from trainer.contract.shape import ModelShape, count_parameters
from trainer.contract.spec import RunSpec

# Tokens whose logits exist at once. On the CPU the best of 128, 256, 512 and 1024 on two threads:
# the chunk stays in cache.
CHUNK_TOKENS = {"cpu": 256, "mps": 256, "cuda": 4096}
# How far an estimate may be below the truth. On CUDA the trunk keeps what trunk.py lists, counted
# against the allocator's peak (tests/nullgpu/test_step_memory.py: within 5 %); elsewhere, and in
# fp8, what a compiled block keeps for its backward pass is known for some shapes only.
COUNTED_ERROR, ESTIMATE_ERROR = 1.05, 1.25
NEAR_THE_LIMIT = 0.9
EXCHANGED_AT_ONCE = 4 * 2**24  # bytes: CHUNK elements of runtime/world.py in float32
CUBLAS_WORKSPACES = 60_000_000  # of two threads; 8 MB each on Ada, 32 MB on Hopper


def estimate_memory(
    shape: ModelShape, batch: BatchPlan, spec: RunSpec, context: PlanContext
) -> MemoryEstimate:
    """Peak device memory by part."""
    counts = count_parameters(shape)
    table, act = table_bytes(spec, context), 4 if compute_dtype(spec, context) == "fp32" else 2
    tables = counts.wte + counts.value_embeds
    dense = counts.total - tables
    tokens = batch.device_batch_size * shape.sequence_len
    weights = tables * table + dense * 4 + (dense * 2 if act == 2 else 0)
    # Muon's momentum is sharded among the devices
    momentum = counts.transformer * 4 // spec.num_ranks
    optimizer = 2 * tables * table + 2 * counts.lm_head * 4 + momentum
    chunk = min(tokens, CHUNK_TOKENS[context.device_type])
    counted = is_counted(spec, context)
    if counted:
        gradients = dense * 4 + int(tables * touched_share(shape.vocab_size, batch.tokens)) * 4
        logits = chunk * shape.vocab_size * act
        activations = _counted_activations(shape, tokens, act, logits)
    else:
        gradients = dense * 4 + tables * 4
        kept_per_layer = 6 * shape.n_embd + 2 * shape.kv_width + 2 * 4 * shape.n_embd
        activations = tokens * act * (shape.n_layer * kept_per_layer + 4 * shape.n_embd)
        logits = chunk * shape.padded_vocab_size * (act + 4)
    # CUDA's context, and what the allocator holds beyond the peak
    overhead = 600_000_000 if context.device_type == "cuda" else 300_000_000
    exchange = _exchange(spec, counts.transformer, gradients)
    return MemoryEstimate(
        weights=weights,
        gradients=gradients,
        optimizer=optimizer,
        activations=activations,
        logits=logits,
        overhead=overhead,
        exchange=exchange,
        total=weights + gradients + optimizer + activations + logits + overhead + exchange,
        available=context.device_memory_bytes,
        measured=_measured(batch, context),
        error=COUNTED_ERROR if counted else ESTIMATE_ERROR,
    )


def _exchange(spec: RunSpec, transformer: int, gradients: int) -> int:
    """Bytes of lane gradients that wait for their pair, and of exchange buffers: the sums, piece by
    piece, and the largest stack of updated matrices, which is a third of them."""
    ranks, lanes = spec.num_ranks, spec.lanes
    waiting = (lanes // ranks).bit_length() - 1
    moved = 3 * EXCHANGED_AT_ONCE + transformer * 4 // 3 if ranks > 1 else 0
    return waiting * gradients + moved


def is_counted(spec: RunSpec, context: PlanContext) -> bool:
    """True if the run uses the compiled trunk of trunk.py, whose memory is known."""
    numerics = spec.numerics
    is_compiled = numerics.compile is not False and numerics.precision != "fp8"
    return context.device_type == "cuda" and is_compiled


def _counted_activations(shape: ModelShape, tokens: int, act: int, logits: int) -> int:
    """Bytes of activations trunk.py keeps, plus working memory at the peak beyond the logits: in
    the head the input and result of the pass and their gradients, or in the first layer of the
    backward pass the gradients of its hidden layer and of q, k and v."""
    width, kv_width, heads, kv_heads = shape.n_embd, shape.kv_width, shape.n_head, shape.n_kv_head
    norms = 4 * (2 + heads + kv_heads)  # 1 / rms, float32
    layer = act * (9 * width + 2 * kv_width) + norms + 4 * heads + act * kv_heads // 2
    repeated = 0
    if kv_width < width:  # sdpa receives key and value heads repeated for each query head
        full = sum(window >= shape.sequence_len for window in shape.windows)
        repeated = full * act * 2 * (width - kv_width)
    in_head, in_backward = 4.5 * width * act * tokens, 18 * width * act * tokens
    working = max(in_head, in_backward - logits)
    return tokens * (shape.n_layer * layer + repeated) + int(working) + CUBLAS_WORKSPACES


@lru_cache(maxsize=64)
def touched_share(vocab_size: int, tokens: int) -> float:
    """Share of a vocabulary that occurs in `tokens` tokens of text, by Zipf's law."""
    drawn = tokens / (math.log(vocab_size) + 0.5772)
    return sum(1 - math.exp(-drawn / rank) for rank in range(1, vocab_size + 1)) / vocab_size


def cannot_fit(memory: MemoryEstimate) -> bool:
    """True if a run is certain to run out of memory: a measured peak, or an estimate far beyond."""
    if memory.available is None:
        return False
    if memory.measured is not None:
        return memory.measured > memory.available
    return memory.total > memory.error * memory.available


def is_near_the_limit(memory: MemoryEstimate) -> bool:
    """True if the expected peak is close to the available memory."""
    return memory.available is not None and memory.expected > NEAR_THE_LIMIT * memory.available


def _measured(batch: BatchPlan, context: PlanContext) -> int | None:
    """Peak bytes of an earlier run with the same number of rows per pass; None without one."""
    if context.device_type != "cuda" or context.measured_rows != batch.device_batch_size:
        return None
    return context.measured_peak_bytes


def table_bytes(spec: RunSpec, context: PlanContext) -> int:
    """Bytes per element of the embedding tables: 2 if stored in bf16, 4 in float32."""
    if architecture_of(spec.model).tables == "float32":
        return 4
    return 2 if compute_dtype(spec, context) == "bf16" else 4


def compute_dtype(spec: RunSpec, context: PlanContext) -> Literal["bf16", "fp16", "fp32"]:
    """The compute dtype of a run, with `auto` resolved for the device."""
    asked = spec.numerics.precision
    if asked == "auto":
        return "bf16" if context.device_type == "cuda" else "fp32"
    return "bf16" if asked == "fp8" else asked
