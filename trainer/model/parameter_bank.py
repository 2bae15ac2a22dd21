"""Parameter bank: all dense weights in one buffer, their gradients in another.

Matrices of one shape are contiguous, so Muon's stack (K, rows, cols) is a view: nothing is stacked
and copied back each step. One pass casts every weight to the compute dtype, one pass computes the
gradient norm. Embedding tables are not here: see `embedding.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trainer.contract.shape import ModelShape
from trainer.model import parameters


@dataclass(frozen=True)
class BankPlace:
    """Position of a parameter in the buffer."""

    offset: int
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def view(self, buffer: Tensor) -> Tensor:
        """The same memory, but a separate tensor for autograd: given a view, the compiler traces
        the whole buffer, 0.7 s of a start."""
        return buffer[self.offset : self.offset + self.size].view(self.shape).detach()


class ParameterBank:
    """Master weights (float32), gradients (float32) and weights in the compute dtype.

    Layout: Muon's stacks in sorted order of shape, lm_head, then the scalars as one vector.
    """

    def __init__(self, shape: ModelShape, compute_dtype: torch.dtype, device: torch.device) -> None:
        shapes = parameters.parameter_shapes(shape)
        self.places: dict[str, BankPlace] = {}
        self.stacks: dict[str, BankPlace] = {}
        offset = 0
        for group in parameters.muon_groups(shape):
            stack = (len(group.names), group.rows, group.cols)
            self.stacks[group.key] = BankPlace(offset, stack)
            offset = _aligned(self._place(group.names, shapes, offset))
        offset = _aligned(self._place((parameters.LM_HEAD,), shapes, offset))
        start = offset
        end = self._place(parameters.scalar_names(shape), shapes, offset)
        self.scalars = BankPlace(start, (end - start,))
        self.weights = torch.zeros(end, dtype=torch.float32, device=device)
        self.compute_dtype = compute_dtype
        self.casts = compute_dtype != torch.float32
        self.gradients: Tensor | None = None
        self.parameters = {
            name: nn.Parameter(place.view(self.weights)) for name, place in self.places.items()
        }
        self.leaves: dict[str, Tensor] = dict(self.parameters)
        if self.casts:
            self._make_cast_leaves()

    def refresh(self) -> None:
        """Cast the weights to the compute dtype: once per step, not once per micro-batch."""
        if self.casts:
            with torch.no_grad():
                self.cast_buffer.copy_(self.weights)

    def attach_gradients(self) -> None:
        """Give every parameter a gradient that is a view of one buffer."""
        if self.gradients is not None:
            return
        self.gradients = torch.zeros_like(self.weights)
        for name, parameter in self.parameters.items():
            parameter.grad = self.places[name].view(self.gradients)
            leaf = self.leaves[name]
            if leaf is not parameter:
                leaf.register_post_accumulate_grad_hook(_move_into(parameter.grad))

    def gradient(self, name: str) -> Tensor:
        assert self.gradients is not None
        return self.places[name].view(self.gradients)

    @property
    def compute_buffer(self) -> Tensor:
        """Weights in the compute dtype, as the forward pass uses them."""
        return self.cast_buffer if self.casts else self.weights

    def computed(self, name: str) -> Tensor:
        """A matrix in the compute dtype, without autograd."""
        return self.places[name].view(self.compute_buffer)

    def joined(self, names: Sequence[str]) -> list[BankPlace]:
        """Places of these matrices, adjacent ones joined: each (rows, cols)."""
        found: list[BankPlace] = []
        for place in (self.places[name] for name in names):
            last = found[-1] if found else None
            if last and last.offset + last.size == place.offset and last.shape[1] == place.shape[1]:
                found[-1] = BankPlace(last.offset, (last.shape[0] + place.shape[0], place.shape[1]))
            else:
                found.append(place)
        return found

    def _place(self, names: Sequence[str], shapes: dict[str, tuple[int, ...]], offset: int) -> int:
        for name in names:
            self.places[name] = BankPlace(offset, shapes[name])
            offset += self.places[name].size
        return offset

    def _make_cast_leaves(self) -> None:
        """Create the autograd leaves: matrices in the compute dtype, lambdas in float32."""
        self.cast_buffer = self.weights.to(self.compute_dtype)
        for name, place in self.places.items():
            if len(place.shape) == 2:
                self.leaves[name] = place.view(self.cast_buffer).requires_grad_()


def _aligned(offset: int) -> int:
    """The next multiple of 64 elements: stacks begin on cache lines and tensor-core tiles."""
    return -(-offset // 64) * 64


def _move_into(gradient: Tensor):
    def add(leaf: Tensor) -> None:
        assert leaf.grad is not None
        gradient.add_(leaf.grad)
        leaf.grad = None

    return add
