"""The training step: micro-batches in, one update out, no host synchronization in between.

The forward pass is cut where that pays: table rows are looked up outside autograd (their gradient
is a compact sum, `embedding.py`), the head makes its gradient in the forward pass (`head.py`). The
trunk between them has its gradients written out on a card (`trunk.py`); elsewhere, and in fp8, it
is autograd's.
"""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainer.model import attention, attention_gradient, head, parameters, relu2
from trainer.model.architecture import finish, lookup, start
from trainer.model.attention_gradient import AttendBack
from trainer.model.embedding import Slots, TouchedRows
from trainer.model.fp8 import block_fp8
from trainer.model.gpt import GPT
from trainer.model.trunk import Trunk
from trainer.optim.adamw import adamw_from_count
from trainer.optim.optimizer import Optimizer
from trainer.runtime import malloc
from trainer.runtime.compiler import Compiler
from trainer.runtime.world import World
from trainer.train.compiled_losses import CompiledLosses
from trainer.train.lanes import LaneSum

MicroBatch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class StepResult:
    """0-d tensors on the device, to be read a step later.

    loss: float32, nats per token, mean over the micro-batches that have a target. grad_norm:
    float32, of the whole gradient. finite: bool; when false, the weights were left as they were.
    """

    loss: Tensor
    grad_norm: Tensor
    finite: Tensor


class _Scored(torch.autograd.Function):
    """A scalar whose gradient is the one given. `x.backward(gradient)` would do, but loads sympy to
    compare two shapes: half a second of every start without a compiler."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        return x.new_zeros(())

    @staticmethod
    def backward(ctx: Any, *_: Any) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return gradient, None


class Reading:
    """A step's numbers on their way to the host. The copy is queued right behind the step, so that
    reading waits for that step alone: `.item()` would wait for all that was launched since."""

    def __init__(self, result: StepResult) -> None:
        numbers = torch.stack([result.loss, result.grad_norm, result.finite.float()])
        self._arrived: torch.cuda.Event | None = None
        self._numbers = numbers
        if numbers.device.type == "cuda":
            self._numbers = torch.empty(3, pin_memory=True).copy_(numbers, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    def values(self) -> tuple[float, float, bool]:
        """(loss, gradient norm, finite), as soon as the step is done."""
        if self._arrived is not None:
            self._arrived.synchronize()
        loss, grad_norm, finite = self._numbers.tolist()
        return loss, grad_norm, bool(finite)


class OwnWork:
    """Times a part of each step, on the device where that runs by itself."""

    def __init__(self, device: torch.device) -> None:
        self._on_cuda = device.type == "cuda"
        self._spans: deque[tuple[Any, Any]] = deque(maxlen=32)
        self._began: Any = None

    def __enter__(self) -> None:
        self._began = self._now()

    def __exit__(self, *_: object) -> None:
        self._spans.append((self._began, self._now()))

    def seconds(self) -> float | None:
        """The median over those that are done; None before the first."""
        if not self._on_cuda:
            done = [end - began for began, end in self._spans]
        else:
            ended = [(began, end) for began, end in self._spans if end.query()]
            done = [began.elapsed_time(end) / 1000 for began, end in ended]
        return statistics.median(done) if done else None

    def _now(self) -> Any:
        if not self._on_cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


class Stepper:
    """Owns how a step is done: compiled or not, and with which attention.

    deterministic: what `device.configure` was told; only recorded here. CPU kernels always repeat.
    choices_file: where the winners of races are remembered for this machine.
    attention_backends: {window: backend} that is settled already, for a run or by an override.
    fp8: the trunk's products in 8 bits (fp8.py); evaluations go on in the compute dtype.
    relu2_tile: of our own kernel for the MLP (relu2.py), where it runs here; RACE lets it race.
    explicit_gradients: the trunk of trunk.py instead of autograd's; None: on CUDA, but for fp8.
    before_update: called in each step when all but its update is launched; up to there weights and
    optimizer state are only read.
    lanes: how many groups of micro-batches are summed apart and then by a tree (lanes.py).
    world: the ranks that share a step, each with consecutive lanes of it.
    token_losses: what evaluations of the run compute with.
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
        self._lane_sum = LaneSum()
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
        self._start, self._block, self._finish = map(self.compiler, (start, layer, finish))
        pieces = relu2.pieces_with(self.relu2_tile)
        self.trunk = Trunk(model, self.compiler.pure, self._attend(), *pieces) if explicit else None
        self.token_losses = CompiledLosses(model, self.trunk, self.compiler, rows)
        self._compiled_chunk = self.compiler(head.chunk_loss_and_gradient)
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

        Gradients are the mean over the micro-batches, one without a target adding nothing, and
        never clipped. A loss or gradient that is not finite leaves weights and optimizer state as
        they were. With several ranks, micro_batches are the own ones and `tokens` those of all
        micro-batches of the step.
        """
        with self._work:
            losses = torch.stack(self._losses(micro_batches, True, tokens))
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
        # an overflow is part of float16's life, until nothing is left to halve
        if scale is not None:
            accident = torch.isfinite(loss) & ~finite & ~scale.exhausted
            scale.update(finite)
            finite = finite | accident
        return StepResult(loss=loss, grad_norm=grad_norm, finite=finite)

    def loss_only(
        self, micro_batches: Sequence[MicroBatch], tokens: Sequence[Tensor] | None = None
    ) -> Tensor:
        """The loss that `train_step` would report, to the bit; weights and state stay put."""
        return self.mean_loss(self.own_losses(micro_batches, tokens))

    def own_losses(
        self, micro_batches: Sequence[MicroBatch], tokens: Sequence[Tensor] | None = None
    ) -> Tensor:
        """The losses of these micro-batches, by what `train_step` computes; asks no other rank."""
        return torch.stack(self._losses(micro_batches, False, tokens))

    def mean_loss(self, own_losses: Tensor) -> Tensor:
        """The mean over the micro-batches of all ranks."""
        return mean_loss(self._sum_over_ranks(own_losses, learn=False))

    def own_seconds(self) -> float | None:
        """What the forward and backward passes of a step took here, median of the last ones."""
        return self._work.seconds()

    def describe_choices(self) -> dict[str, Any]:
        """What was chosen on this machine: part of the determinism fingerprint."""
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

    # --- gradients -------------------------------------------------------------------------------

    def _losses(
        self,
        micro_batches: Sequence[MicroBatch],
        learn: bool,
        all_tokens: Sequence[Tensor] | None = None,
    ) -> list[Tensor]:
        """Mean loss of each micro-batch; with `learn`, gradients are left in bank and touched rows.

        Without it the same functions run and their gradients are thrown away: a forward pass under
        no_grad is compiled differently and may round differently.
        """
        self._clear_gradients()
        self._lane_sum.begin()
        tokens = all_tokens or [t for t, _ in micro_batches]
        size = self.model.shape.padded_vocab_size
        touched = TouchedRows(tokens, size, self.model.device, self._uses_kernels)
        self.model.touched = touched if learn else None
        scale = torch.full((), 1 / len(tokens), device=self.model.device)
        in_lane = len(tokens) // self.lanes
        if self.optimizer.loss_scale is not None:
            scale = scale * self.optimizer.loss_scale.scale
        losses = []
        for tokens_BT, targets_BT in micro_batches:
            first = self.trunk is not None and len(losses) % in_lane == 0
            losses.append(self._one(tokens_BT, targets_BT, touched, scale, learn, first))
            if self.lanes > 1 and learn and len(losses) % in_lane == 0:
                self._close_lane(touched, last=len(losses) == len(micro_batches))
        self.compiler.let_vary(touched.gradients.values())
        return losses

    def _close_lane(self, touched: TouchedRows, last: bool) -> None:
        assert self.model.bank.gradients is not None
        self._lane_sum.close(self.model.bank.gradients, touched, last=last)
        if not last:
            self._clear_gradients()

    def _sum_over_ranks(self, losses_A: Tensor, learn: bool) -> Tensor:
        """The losses of all micro-batches in their order; with `learn`, the own gradients become
        those of all. Each rank adds zeros in the places of the others' losses."""
        if self.world.size == 1:
            return losses_A
        places = losses_A.new_zeros(self.world.size, len(losses_A))
        places[self.world.rank] = losses_A
        with torch.no_grad():
            self.world.sum_([*(self._gradients() if learn else ()), places])
        return places.view(-1)

    def _clear_gradients(self) -> None:
        """All of them, or the scalars' where the first micro-batch writes the other ones anew."""
        bank = self.model.bank
        assert bank.gradients is not None
        (bank.gradients if self.trunk is None else bank.scalars.view(bank.gradients)).zero_()

    def _one(
        self,
        tokens_BT: Tensor,
        targets_BT: Tensor,
        touched: TouchedRows,
        scale: Tensor,
        learn: bool,
        first: bool,
    ) -> Tensor:
        """One micro-batch's loss. What it keeps for its backward pass ends with this call: without
        a backward pass, names alone would hold it beside the next forward's."""
        tokens_BT = tokens_BT.to(self.model.device, non_blocking=True)
        targets_N = targets_BT.to(self.model.device, non_blocking=True).reshape(-1)
        slots = touched.slots(tokens_BT)
        if self.trunk is None:
            rows = {name: self._leaf(name, tokens_BT, touched, slots) for name in self.model.tables}
            with torch.enable_grad():
                x_BTD = self.model.trunk(rows, self._start, self._block, self._finish)
            loss, gradient_BTD = self._head(x_BTD.detach(), targets_N, scale, first)
            if learn:
                _Scored.apply(x_BTD, gradient_BTD).backward()
            return loss
        kept = self.trunk.forward(tokens_BT, keep=learn)
        loss, gradient_BTD = self._head(kept.out, targets_N, scale, first)
        if learn:
            add_rows = partial(_add_rows, touched, slots)
            self.trunk.backward(kept, gradient_BTD, add_rows, first=first)
        return loss

    @torch.no_grad()
    def _head(
        self, x_BTD: Tensor, targets_N: Tensor, scale: Tensor, first: bool
    ) -> tuple[Tensor, Tensor]:
        """(mean loss, scaled gradient for the trunk's output)."""
        model = self.model
        loss, gradient_ND = head.loss_and_gradient(
            x_BTD.flatten(0, 1),
            model.head_weight.detach(),
            targets_N,
            model.bank.gradient(parameters.LM_HEAD)[: model.shape.vocab_size],
            scale,
            self._chunk,
            first=first,
        )
        return loss, gradient_ND.view_as(x_BTD)

    def _chunk(self, z_NV: Tensor, targets_N: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
        if not self._uses_kernels:
            return self._compiled_chunk(z_NV, targets_N, factor)
        from trainer.model.head_kernel import loss_and_gradient_in_place

        return loss_and_gradient_in_place(z_NV, targets_N, factor)

    def _leaf(self, name: str, tokens_BT: Tensor, touched: TouchedRows, slots: Slots) -> Tensor:
        """Rows of a table as a leaf, whose gradient goes straight into the touched rows."""
        table = self.model.tables[name].detach()
        leaf = lookup(tokens_BT, table, self.model.compute_dtype).requires_grad_()
        leaf.register_post_accumulate_grad_hook(_collect(name, touched, slots))
        return leaf

    @property
    def _uses_kernels(self) -> bool:
        """Whether Triton kernels beside the compiler's are used."""
        return self.model.device.type == "cuda" and self.compiler.active

    def _unscale(self, scale: Tensor) -> None:
        for gradient in self._gradients():
            gradient.mul_(1 / scale)

    def _grad_norm(self) -> Tensor:
        return torch.stack([torch.linalg.vector_norm(g) for g in self._gradients()]).norm()

    def _gradients(self) -> list[Tensor]:
        assert self.model.bank.gradients is not None
        assert self.model.touched is not None
        return [self.model.bank.gradients, *self.model.touched.gradients.values()]


def mean_loss(losses_A: Tensor) -> Tensor:
    """The mean over the micro-batches that have a target, 0-d; 0 where none has.

    The loss of a micro-batch without one is exactly 0: `head.loss_and_gradient`.
    """
    return losses_A.sum() / (losses_A != 0).sum().clamp_min(1)


def _collect(table: str, touched: TouchedRows, slots: Slots):
    def add(leaf: Tensor) -> None:
        assert leaf.grad is not None
        touched.add(table, leaf.grad, slots)
        leaf.grad = None

    return add


def _add_rows(touched: TouchedRows, slots: Slots, table: str, gradient_BTW: Tensor) -> None:
    touched.add(table, gradient_BTW, slots)
