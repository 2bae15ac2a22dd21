"""Forward and backward passes of a step: micro-batches in, their losses and gradients out.

The forward pass is split where that is faster: table rows are looked up outside autograd (their
gradient is a compact sum, `embedding.py`), the head computes its gradient in the forward pass
(`head.py`). The trunk between them has explicit gradients on a GPU (`trunk.py`); on the CPU, and in
fp8, it uses autograd.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from trainer.model import head, parameters
from trainer.model.architecture import lookup
from trainer.model.embedding import Slots, TouchedRows
from trainer.model.gpt import GPT
from trainer.model.trunk import Trunk
from trainer.optim.loss_scale import LossScale
from trainer.runtime.compiler import Compiler
from trainer.train.lanes import LaneSum

MicroBatch = tuple[Tensor, Tensor]


class ForwardBackward:
    """Passes over the micro-batches of a step. Gradients end up in the model's bank and, for its
    tables, in the touched rows.

    blocks: start, block and finish of the trunk that autograd differentiates. trunk: the trunk with
    explicit gradients, used instead. lanes: number of groups of micro-batches that are summed
    separately and then by a tree (lanes.py).
    """

    def __init__(
        self,
        model: GPT,
        compiler: Compiler,
        blocks: tuple[Callable[..., Any], ...],
        trunk: Trunk | None,
        *,
        lanes: int,
        loss_scale: LossScale | None,
    ) -> None:
        self._model, self._compiler, self._blocks, self._trunk = model, compiler, blocks, trunk
        self._lanes, self._lane_sum, self._loss_scale = lanes, LaneSum(), loss_scale
        self._compiled_chunk = compiler(head.chunk_loss_and_gradient)

    def losses(
        self,
        micro_batches: Sequence[MicroBatch],
        learn: bool,
        all_tokens: Sequence[Tensor] | None = None,
    ) -> list[Tensor]:
        """Mean loss of each micro-batch, 0-d; with `learn`, also computes gradients.

        Without it the same functions run and their gradients are discarded: a forward pass under
        no_grad is compiled differently and may round differently.
        """
        self._clear_gradients()
        self._lane_sum.begin()
        tokens = all_tokens or [t for t, _ in micro_batches]
        size = self._model.shape.padded_vocab_size
        touched = TouchedRows(tokens, size, self._model.device, self._uses_kernels)
        self._model.touched = touched if learn else None
        scale = torch.full((), 1 / len(tokens), device=self._model.device)
        in_lane = len(tokens) // self._lanes
        if self._loss_scale is not None:
            scale = scale * self._loss_scale.scale
        losses = []
        for tokens_BT, targets_BT in micro_batches:
            first = self._trunk is not None and len(losses) % in_lane == 0
            losses.append(self._one(tokens_BT, targets_BT, touched, scale, learn, first))
            if self._lanes > 1 and learn and len(losses) % in_lane == 0:
                self._close_lane(touched, last=len(losses) == len(micro_batches))
        self._compiler.let_vary(touched.gradients.values())
        return losses

    def gradients(self) -> list[Tensor]:
        """Gradients of the last passes: of the bank, and of the touched rows of each table."""
        assert self._model.bank.gradients is not None
        assert self._model.touched is not None
        return [self._model.bank.gradients, *self._model.touched.gradients.values()]

    def _close_lane(self, touched: TouchedRows, last: bool) -> None:
        assert self._model.bank.gradients is not None
        self._lane_sum.close(self._model.bank.gradients, touched, last=last)
        if not last:
            self._clear_gradients()

    def _clear_gradients(self) -> None:
        """Zero all gradients, or only the scalars' if the first micro-batch overwrites the rest."""
        bank = self._model.bank
        assert bank.gradients is not None
        (bank.gradients if self._trunk is None else bank.scalars.view(bank.gradients)).zero_()

    def _one(
        self,
        tokens_BT: Tensor,
        targets_BT: Tensor,
        touched: TouchedRows,
        scale: Tensor,
        learn: bool,
        first: bool,
    ) -> Tensor:
        """One micro-batch's loss. Activations are freed when it returns: without a backward pass,
        local names would keep them alive during the next forward pass."""
        model = self._model
        tokens_BT = tokens_BT.to(model.device, non_blocking=True)
        targets_N = targets_BT.to(model.device, non_blocking=True).reshape(-1)
        slots = touched.slots(tokens_BT)
        if self._trunk is None:
            rows = {name: self._leaf(name, tokens_BT, touched, slots) for name in model.tables}
            with torch.enable_grad():
                x_BTD = model.trunk(rows, *self._blocks)
            loss, gradient_BTD = self._head(x_BTD.detach(), targets_N, scale, first)
            if learn:
                _Scored.apply(x_BTD, gradient_BTD).backward()
            return loss
        kept = self._trunk.forward(tokens_BT, keep=learn)
        loss, gradient_BTD = self._head(kept.out, targets_N, scale, first)
        if learn:
            add_rows = partial(_add_rows, touched, slots)
            self._trunk.backward(kept, gradient_BTD, add_rows, first=first)
        return loss

    @torch.no_grad()
    def _head(
        self, x_BTD: Tensor, targets_N: Tensor, scale: Tensor, first: bool
    ) -> tuple[Tensor, Tensor]:
        """(mean loss, scaled gradient for the trunk's output)."""
        model = self._model
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
        """Rows of a table as a leaf, whose gradient is added directly to the touched rows."""
        table = self._model.tables[name].detach()
        leaf = lookup(tokens_BT, table, self._model.compute_dtype).requires_grad_()
        leaf.register_post_accumulate_grad_hook(_collect(name, touched, slots))
        return leaf

    @property
    def _uses_kernels(self) -> bool:
        """True if traind's own Triton kernels are used."""
        return self._model.device.type == "cuda" and self._compiler.active


class _Scored(torch.autograd.Function):
    """A scalar with a given gradient. `x.backward(gradient)` would do, but loads sympy to compare
    two shapes: half a second of every start without a compiler."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        return x.new_zeros(())

    @staticmethod
    def backward(ctx: Any, *_: Any) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return gradient, None


def _collect(table: str, touched: TouchedRows, slots: Slots):
    def add(leaf: Tensor) -> None:
        assert leaf.grad is not None
        touched.add(table, leaf.grad, slots)
        leaf.grad = None

    return add


def _add_rows(touched: TouchedRows, slots: Slots, table: str, gradient_BTW: Tensor) -> None:
    touched.add(table, gradient_BTW, slots)
