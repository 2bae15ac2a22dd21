"""Sections 1, 3 and 5 of the recipe as plain arithmetic: shape, scaled rates, schedule.

Only containers are shared with `trainer`; this module computes every number in them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from trainer.contract.plan import Hyperparameters
from trainer.contract.recipe import Architecture
from trainer.contract.shape import ModelShape

B_REF = 524_288
# none is nanochat's default: small batches learn faster, and a value that was not applied shows
OPTIMIZER = {
    "matrix_lr": 0.1,
    "embedding_lr": 2.0,
    "unembedding_lr": 0.1,
    "scalar_lr": 0.6,
    "weight_decay": 2.0,
}
WARMUP, WARMDOWN, FINAL = 6, 0.5, 0.1


@dataclass(frozen=True)
class Dials:
    """Settings of a nanochat user; heads: n_kv_head if it differs from n_head."""

    depth: int
    aspect_ratio: int
    head_dim: int
    sequence_len: int
    window_pattern: str
    vocab_size: int
    n_kv_head: int | None = None
    recipe: str = "2026-07"
    short_window: int | None = None

    @property
    def n_embd(self) -> int:
        return math.ceil(self.depth * self.aspect_ratio / self.head_dim) * self.head_dim

    @property
    def n_head(self) -> int:
        return self.n_embd // self.head_dim

    def shape(self) -> ModelShape:
        return ModelShape(
            n_layer=self.depth,
            n_embd=self.n_embd,
            n_head=self.n_head,
            n_kv_head=self.n_kv_head or self.n_head,
            head_dim=self.head_dim,
            sequence_len=self.sequence_len,
            vocab_size=self.vocab_size,
            window_pattern=self.window_pattern,
            traits=self.traits(),
        )

    def traits(self) -> Architecture:
        if self.recipe != "2026-09":
            return Architecture(counts_smear_gate=self.recipe == "2026-07")
        return Architecture(
            smear=False,
            short_window=self.short_window or 512,
            tables="float32",
            value_init_normal=True,
            counts_smear_gate=False,
        )

    def scaling_parameters(self) -> int:
        """Transformer matrices, including the gates of the value embeddings, and lm_head."""
        width, kv_heads = self.n_embd, self.n_kv_head or self.n_head
        kv_width = kv_heads * self.head_dim
        layer = width * width + 2 * kv_width * width + width * width + 2 * 4 * width * width
        gates = sum(1 for i in range(self.depth) if i % 2 == (self.depth - 1) % 2) * 12 * kv_heads
        return self.depth * layer + gates + math.ceil(self.vocab_size / 64) * 64 * width

    def hyperparameters(self, batch_tokens: int) -> Hyperparameters:
        twelve = Dials(
            12,
            self.aspect_ratio,
            self.head_dim,
            self.sequence_len,
            self.window_pattern,
            self.vocab_size,
        )
        batch = math.sqrt(batch_tokens / B_REF)
        width = math.sqrt(768 / self.n_embd)
        head, table = (768 / self.n_embd, 1.0) if self.recipe == "2026-09" else (width, width)
        return Hyperparameters(
            lr_factor=batch,
            width_factor=head,
            table_width_factor=None if head == table else table,
            muon="2026-03" if self.recipe == "2026-03" else "2026-07",
            matrix_lr=OPTIMIZER["matrix_lr"] * batch,
            embedding_lr=OPTIMIZER["embedding_lr"] * batch * table,
            value_embedding_lr=OPTIMIZER["embedding_lr"] * batch * table / 2,
            unembedding_lr=OPTIMIZER["unembedding_lr"] * batch * head,
            resid_lr=OPTIMIZER["scalar_lr"] * batch / 100,
            x0_lr=OPTIMIZER["scalar_lr"] * batch,
            smear_lr=0.2,
            weight_decay=OPTIMIZER["weight_decay"]
            * batch
            * twelve.scaling_parameters()
            / self.scaling_parameters(),
        )


def schedule(step: int, horizon: int, peak_weight_decay: float) -> tuple[float, float, float]:
    """(LR multiplier, momentum, weight decay) of one step of a run of `horizon` steps, linear."""
    warmdown = round(WARMDOWN * horizon)
    left = (horizon - step) / warmdown
    lr = 1.0 if left >= 1 else left + (1 - left) * FINAL
    if step < WARMUP:
        lr = (step + 1) / WARMUP
    if step < 400:
        momentum = 0.85 + 0.12 * step / 400
    else:
        momentum = 0.97 if left >= 1 else 0.97 * left + 0.90 * (1 - left)
    return lr, momentum, peak_weight_decay * (1 + math.cos(math.pi * step / horizon)) / 2
