"""Small models and batches for tests of the trainer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.contract.plan import Hyperparameters, make_plan
from trainer.contract.shape import ModelShape, shape_of
from trainer.contract.spec import resolve
from trainer.model.gpt import GPT
from trainer.optim.optimizer import Optimizer
from trainer.train.step import Stepper

VOCAB = 1000  # not a multiple of 64: the tables are padded to 1,024
RATES = {"lr_multiplier": 0.7, "momentum": 0.9, "weight_decay": 0.1}


@dataclass(frozen=True)
class Kind:
    """A model that shows one thing the nanochat fixture does not."""

    depth: int = 3
    aspect_ratio: int = 16
    head_dim: int = 16
    n_kv_head: int | None = None
    sequence_len: int = 64
    window_pattern: str = "L"
    recipe: str = "2026-07"
    short_window: int | None = None

    def plan(self) -> tuple[ModelShape, Hyperparameters]:
        model = {**vars(self), "vocab_size": VOCAB}
        batch = {"tokens": 4 * self.sequence_len, "device_batch_size": 2}
        spec = resolve({"name": "test", "model": model, "batch": batch})
        return shape_of(spec.model), make_plan(spec).hyperparameters


KINDS = {
    "three heads, padded vocabulary": Kind(),
    "windows": Kind(depth=4, aspect_ratio=8, sequence_len=512, window_pattern="SL"),
    "ragged windows": Kind(aspect_ratio=8, sequence_len=300, window_pattern="SSL"),
    "grouped queries": Kind(depth=2, aspect_ratio=32, n_kv_head=2),
    "one kv head for three": Kind(n_kv_head=1),
    "one layer": Kind(depth=1, aspect_ratio=32),
    "recipe 2026-03": Kind(recipe="2026-03"),
    "recipe 2026-09": Kind(recipe="2026-09"),
    "recipe 2026-09, windows, one kv head": Kind(
        aspect_ratio=8,
        sequence_len=300,
        window_pattern="SSL",
        n_kv_head=1,
        recipe="2026-09",
        short_window=128,
    ),
}


def trained_model(kind: Kind, dtype: torch.dtype = torch.float32, seed: int = 0) -> GPT:
    """A model away from its initial values, where projections are zero and gradients vanish."""
    model = GPT(kind.plan()[0], compute_dtype=dtype, device="cpu")
    model.init_weights(seed)
    draw = torch.Generator().manual_seed(seed + 1)
    state = {
        name: value.float() + 0.02 * torch.randn(value.shape, generator=draw)
        for name, value in model.state_dict().items()
    }
    model.load_state_dict(state)
    return model


def stepper(model: GPT, hyper: Hyperparameters, compile: bool = False) -> Stepper:
    return Stepper(model, Optimizer(model, hyper), compile=compile, deterministic=True, rows=2)


def batches(kind: Kind, count: int = 2, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    """Micro-batches of two rows; some targets do not count."""
    draw = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(count):
        block = torch.randint(0, VOCAB, (2, kind.sequence_len + 1), generator=draw)
        targets = block[:, 1:].clone()
        targets[0, :5] = -1
        made.append((block[:, :-1].contiguous(), targets))
    return made
