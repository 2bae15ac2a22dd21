"""The training step: micro-batches in, one update out, no host synchronization in between."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainer.model import attention, attention_gradient, head, relu2
from trainer.model.architecture import finish, start
from trainer.model.attention_gradient import AttendBack
from trainer.model.fp8 import block_fp8
from trainer.model.gpt import GPT
from trainer.model.trunk import Trunk
from trainer.optim.adamw import adamw_from_count
from trainer.optim.optimizer import Optimizer
from trainer.runtime import malloc
from trainer.runtime.compiler import Compiler
from trainer.runtime.world import World
from trainer.train.compiled_losses import CompiledLosses
from trainer.train.forward_backward import ForwardBackward, MicroBatch
from trainer.train.step_result import OwnWork, StepResult


class Stepper:
    """Runs training steps, compiled or not, with the chosen attention and kernels.

    deterministic: as passed to `device.configure`; only recorded here. CPU kernels always repeat.
    choices_file: where autotuning results are stored for this machine.
    attention_backends: {window: backend} that is frozen already, for a run or by an override.
    fp8: the trunk's products in 8 bits (fp8.py); evaluations use the compute dtype.
    relu2_tile: of traind's own MLP kernel (relu2.py), if it runs here; RACE autotunes it.
    explicit_gradients: the trunk of trunk.py instead of autograd's; None: on CUDA, except in fp8.
    before_update: called in each step when all but its update is launched; until then weights and
    optimizer state are only read.
    lanes: number of groups of micro-batches that are summed separately, then by a tree (lanes.py).
    world: the ranks that share a step, each with consecutive lanes of it.
    token_losses: the function that evaluations of the run use.
    """

    def __init__(
        self,
        model: GPT,
        optimizer: Optimizer,
        *,
        compile: bool,
        deterministic: bool,
        rows: int = 1,
        choices_file: Path | None = None,
        attention_backends: Mapping[str, str] | None = None,
        fp8: bool = False,
        relu2_tile: str = relu2.COMPILED,
        explicit_gradients: bool | None = None,
        lanes: int = 1,
        world: World | None = None,
    ) -> None:
        self.model, self.optimizer = model, optimizer
        self.world, self.lanes = world or World(), lanes
        self._work = OwnWork(model.device)
        self.deterministic, self.fp8 = deterministic, fp8
        self.before_update: Callable[[], None] = lambda: None
        if model.device.type == "cpu":
            malloc.keep_freed_memory()
        self.compiler = Compiler(compile, model.device)
        is_cuda = model.device.type == "cuda"
        explicit = is_cuda and not fp8 if explicit_gradients is None else explicit_gradients
        self.attention = attention.choose(
            model.shape,
            rows,
            model.compute_dtype,
            model.device,
            choices_file,
            fixed=attention_backends,
            compiled=self.compiler.active and not explicit,
        )
        model.attend = {w: attention.bind(name, w) for w, name in self.attention.items()}
        self.relu2_tile, self.relu2_reason = relu2.choose(
            relu2_tile,
            model.shape,
            rows,
            model.compute_dtype,
            model.device,
            choices_file,
            compiled=self.compiler.active,
        )
        layer = block_fp8 if fp8 else relu2.block_with(self.relu2_tile)
        blocks = tuple(map(self.compiler, (start, layer, finish)))
        pieces = relu2.pieces_with(self.relu2_tile)
        self.trunk = Trunk(model, self.compiler.pure, self._attend(), *pieces) if explicit else None
        self.token_losses = CompiledLosses(model, self.trunk, self.compiler, rows)
        self.forward_backward = ForwardBackward(
            model, self.compiler, blocks, self.trunk, lanes=lanes, loss_scale=optimizer.loss_scale
        )
        optimizer.adamw = self.compiler(optimizer.adamw)
        if is_cuda:  # on the CPU Muon's products are nearly all of it, and launches cost nothing
            optimizer.muon = self.compiler(optimizer.muon)
            optimizer.adamw_from_count = self.compiler(adamw_from_count)

    def train_step(
        self,
        micro_batches: Sequence[MicroBatch],
        tokens: Sequence[Tensor] | None = None,
        /,
        *,
        lr_multiplier: float,
        momentum: float,
        weight_decay: float,
    ) -> StepResult:
        """Forward and backward over micro_batches of (tokens, targets), each (B, T); one update.

        Gradients are the mean over the micro-batches that have a target; there is no gradient
        clipping. A non-finite loss or gradient leaves weights and optimizer state unchanged. With
        several ranks, micro_batches are this rank's and `tokens` those of all micro-batches of
        the step.
        """
        with self._work:
            losses = torch.stack(self.forward_backward.losses(micro_batches, True, tokens))
        loss = mean_loss(self._sum_over_ranks(losses, learn=True))
        scale = self.optimizer.loss_scale
        if scale is not None:
            self._unscale(scale.scale)
        grad_norm = self._grad_norm()
        finite = torch.isfinite(loss) & torch.isfinite(grad_norm)
        self.before_update()
        self.optimizer.step(
            lr_multiplier=lr_multiplier,
            momentum=momentum,
            weight_decay=weight_decay,
            finite=finite,
        )
        self.model.touched = None
        # overflows are normal in float16 until the loss scale cannot be halved further
        if scale is not None:
            accident = torch.isfinite(loss) & ~finite & ~scale.exhausted
            scale.update(finite)
            finite = finite | accident
        return StepResult(loss=loss, grad_norm=grad_norm, finite=finite)

    def loss_only(
        self, micro_batches: Sequence[MicroBatch], tokens: Sequence[Tensor] | None = None
    ) -> Tensor:
        """The exact loss that `train_step` would report; weights and state do not change."""
        return self.mean_loss(self.own_losses(micro_batches, tokens))

    def own_losses(
        self, micro_batches: Sequence[MicroBatch], tokens: Sequence[Tensor] | None = None
    ) -> Tensor:
        """Losses of these micro-batches, by the same functions as `train_step`; not collective."""
        return torch.stack(self.forward_backward.losses(micro_batches, False, tokens))

    def mean_loss(self, own_losses: Tensor) -> Tensor:
        """The mean over the micro-batches of all ranks."""
        return mean_loss(self._sum_over_ranks(own_losses, learn=False))

    def own_seconds(self) -> float | None:
        """Median seconds of the last forward and backward passes of a step on this rank."""
        return self._work.seconds()

    def describe_choices(self) -> dict[str, Any]:
        """Kernel choices of this machine: part of the determinism fingerprint."""
        return {
            "attention": {str(w): name for w, name in self.attention.items()},
            "compiled": self.compiler.active,
            "compile_reason": self.compiler.reason,
            "compute_dtype": str(self.model.compute_dtype).removeprefix("torch."),
            "deterministic": self.deterministic,
            "head_chunk_tokens": head.chunk_tokens(self.model.device),
            "threads": torch.get_num_threads(),
            **({"gradients": "explicit"} if self.trunk else {}),
            **({"products": "fp8"} if self.fp8 else {}),
            **({"relu2": self.relu2_tile} if self.relu2_tile != relu2.COMPILED else {}),
            **({"lanes": self.lanes} if self.lanes > 1 else {}),
        }

    def _attend(self) -> dict[int | None, AttendBack]:
        model = self.model
        how = (model.shape, model.compute_dtype, model.device)
        return {w: attention_gradient.choose(name, w, *how) for w, name in self.attention.items()}

    def _sum_over_ranks(self, losses_A: Tensor, learn: bool) -> Tensor:
        """Losses of all micro-batches in order; with `learn`, gradients are summed over all ranks.
        Each rank contributes zeros in place of the others' losses."""
        if self.world.size == 1:
            return losses_A
        places = losses_A.new_zeros(self.world.size, len(losses_A))
        places[self.world.rank] = losses_A
        with torch.no_grad():
            self.world.all_reduce([*(self.forward_backward.gradients() if learn else ()), places])
        return places.view(-1)

    def _unscale(self, scale: Tensor) -> None:
        for gradient in self.forward_backward.gradients():
            gradient.mul_(1 / scale)

    def _grad_norm(self) -> Tensor:
        gradients = self.forward_backward.gradients()
        return torch.stack([torch.linalg.vector_norm(g) for g in gradients]).norm()


def mean_loss(losses_A: Tensor) -> Tensor:
    """The mean over the micro-batches that have a target, 0-d; 0 if none has.

    The loss of a micro-batch without one is exactly 0: `head.loss_and_gradient`.
    """
    return losses_A.sum() / (losses_A != 0).sum().clamp_min(1)
