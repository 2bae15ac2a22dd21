"""A preset's training step on this process's null GPU."""

from __future__ import annotations

from typing import Any

import torch

from trainer.contract.plan import make_plan
from trainer.contract.shape import shape_of
from trainer.contract.spec import resolve
from trainer.model.gpt import GPT
from trainer.optim.optimizer import Optimizer
from trainer.train.forward_backward import MicroBatch
from trainer.train.step import Stepper
from trainer.train.step_result import Reading

RATES = {"lr_multiplier": 0.5, "momentum": 0.9, "weight_decay": 0.1}


class Bench:
    """Model, optimizer and stepper of a preset as the session builds them, and one step's batches.

    race: autotune attention's backends, as at a first start; otherwise `attention` is used. Tokens
    are drawn by Zipf's law, as in text, from the preset's vocabulary.
    """

    def __init__(
        self,
        preset: str = "rtx4070-d12",
        rows: int = 8,
        *,
        compile: bool = True,
        deterministic: bool = False,
        race: bool = False,
        attention: str = "sdpa",
        **changes: Any,
    ) -> None:
        body = {"name": "bench", "preset": preset, **changes}
        body["batch"] = {"device_batch_size": rows, **changes.get("batch", {})}
        self.spec = resolve(body)
        self.plan, self.shape = make_plan(self.spec), shape_of(self.spec.model)
        self.device = torch.device("cuda", 0)
        self.model = GPT(self.shape, compute_dtype=torch.bfloat16, device=self.device)
        self.optimizer = Optimizer(self.model, self.plan.hyperparameters)
        self.stepper = Stepper(
            self.model,
            self.optimizer,
            compile=compile,
            deterministic=deterministic,
            rows=rows,
            attention_backends=None if race else {str(w): attention for w in self.shape.windows},
        )
        self.batches = batches(self.plan.batch.accumulation, rows, self.shape)

    def train(self) -> tuple[float, float, bool]:
        """One step, its numbers read."""
        return Reading(self.stepper.train_step(self.batches, **RATES)).values()

    def launch(self) -> Reading:
        """One step, its numbers not yet read, as in the loop."""
        return Reading(self.stepper.train_step(self.batches, **RATES))

    def loss_only(self) -> float:
        return float(self.stepper.loss_only(self.batches))


def batches(count: int, rows: int, shape: Any, seed: int = 0) -> list[MicroBatch]:
    """Pinned (tokens, targets), each (rows, T)."""
    weights = 1 / torch.arange(1, shape.vocab_size + 1, dtype=torch.float64)
    draw = torch.Generator().manual_seed(seed)
    numbers = count * rows * (shape.sequence_len + 1)
    drawn = torch.multinomial(weights, numbers, replacement=True, generator=draw)
    blocks = drawn.view(count, rows, shape.sequence_len + 1)
    return [
        (b[:, :-1].contiguous().pin_memory(), b[:, 1:].contiguous().pin_memory()) for b in blocks
    ]
