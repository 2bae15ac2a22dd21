"""Disk space: checkpoint size, number kept, downloads, token cache."""

from __future__ import annotations

import math

from trainer.contract.plan.answer import Disk, Horizon
from trainer.contract.plan.context import PlanContext
from trainer.contract.plan.memory import table_bytes
from trainer.contract.shape import ModelShape, count_parameters
from trainer.contract.spec import RunSpec

BEST_FIT_KEPT = 0.65  # best_fit discards about 35 % of the tokens of web text
SHARD_TOKENS = 53_000_000  # tokens in one climbmix shard of about 100 MB, as nanochat's vocabulary
SHARD_BYTES = 100_000_000


def estimate_disk(
    spec: RunSpec, shape: ModelShape, horizon: Horizon, shards: int | None, context: PlanContext
) -> Disk:
    """Disk space of a run in bytes: checkpoints, downloads, token cache."""
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
    """Training shards to fetch so that `tokens` fit in one epoch; None if not by the shard."""
    if spec.data.source != "hf":
        return None
    if isinstance(spec.data.max_shards, int):
        return spec.data.max_shards
    kept = BEST_FIT_KEPT if spec.data.packing == "best_fit" else 1.0
    return math.ceil(tokens / (SHARD_TOKENS * kept)) + 1
