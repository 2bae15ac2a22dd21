"""The trunk's training pass with explicit gradients, used on GPUs.

Autograd over compiled blocks keeps the activations that its partitioner finds cheapest, rounds each
weight gradient to the compute dtype before adding it to the float32 sum, and ends every fused
kernel at the end of a block. Here a layer keeps 11 widths per token (x, h, q, k, v, y, the MLP's h,
and relu², which is four), weight gradients are products that add to float32 in place, and the part
between two attentions is compiled as one. On the CPU training uses autograd, on whose bits runs
rely.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trainer.contract.shape import VE_GATE_CHANNELS
from trainer.model import layer, parameters
from trainer.model.attention_gradient import AttendBack, Back
from trainer.model.gpt import GPT
from trainer.model.head import add_product
from trainer.model.layer import (
    DInward,
    DOutward,
    DStart,
    Fixed,
    Heads,
    Hidden,
    Inward,
    Outward,
    Start,
)

# a function of tensors -> the same, with the kind of the call before its arguments
Compile = Callable[[Callable[..., Any]], Callable[..., Any]]
AddRows = Callable[[str, Tensor], None]  # a table's name, gradient of its rows (B, T, W)
MIX_STRIDE = 16  # elements from one layer's lambdas to the next: unaligned tensors are copied


@dataclass
class Layer:
    """Activations that a layer saves for its backward pass. x: its input; y: its attention's
    result (B, T, D); attend_back: the attention's backward pass, with its own activations."""

    x: Tensor
    heads: Heads
    y: Tensor
    attend_back: Back
    hidden: Hidden


@dataclass
class Kept:
    """Activations that a pass saves. inv: 1 / rms of the norm that made `out`; at: key of the
    pass by its shapes."""

    out: Tensor
    inv: Tensor
    middle: Tensor
    fixed: Fixed
    layers: list[Layer]
    at: Hashable


class Trunk:
    """The trunk of `model`, each piece of it compiled once for all layers of its kind.

    attend: the attention of each window, with its backward pass. relu2, d_relu2: the MLP's first
    product with relu², and its gradient.
    """

    def __init__(
        self,
        model: GPT,
        compiler: Compile,
        attend: Mapping[int | None, AttendBack],
        relu2: layer.Relu2 = layer.relu2,
        d_relu2: layer.Relu2Gradient = layer.d_relu2,
    ) -> None:
        self.model, head_dim = model, model.shape.head_dim
        self.attend = attend

        def begin(tokens: Tensor, weights: Start) -> Tensor:
            return layer.start(tokens, weights, model.compute_dtype)

        def enter(x: Tensor, fixed: Fixed, into: Inward) -> Heads:
            return layer.inward(x, fixed, into, head_dim)

        def between(x: Tensor, y: Tensor, fixed: Fixed, out: Outward, into: Inward):
            hidden = layer.outward(x, y, fixed, out, relu2)
            return hidden, layer.inward(hidden.x, fixed, into, head_dim)

        def leave(x: Tensor, y: Tensor, fixed: Fixed, out: Outward) -> Hidden:
            return layer.outward(x, y, fixed, out, relu2)

        def d_leave(d_x: Tensor, hidden: Hidden, out: Outward) -> DOutward:
            return layer.d_outward(d_x, hidden, out, d_relu2)

        def d_between(
            above: tuple[Any, ...], d_middle: Tensor | None, hidden: Hidden, out: Outward
        ) -> tuple[DInward, DOutward]:
            into = layer.d_inward(*above)
            if d_middle is not None:
                into = into._replace(x=into.x + d_middle)
            return into, layer.d_outward(into.x, hidden, out, d_relu2)

        self._begin, self._d_begin = compiler(begin), compiler(layer.d_start)
        self._enter, self._between, self._leave = map(compiler, (enter, between, leave))
        self._d_leave, self._d_between = compiler(d_leave), compiler(d_between)
        self._finish, self._d_finish = compiler(layer.finish), compiler(layer.d_finish)
        self._d_enter = compiler(layer.d_inward)
        self._last, self._middle = model.shape.n_layer - 1, model.shape.n_layer // 2
        self._turn: tuple[Tensor, Tensor] | None = None
        self._mix = torch.zeros(model.shape.n_layer, MIX_STRIDE, device=model.device)
        self._start = _start(model)
        self._weights = [_weights(model, i, mix[:2]) for i, mix in enumerate(self._mix)]
        self._kinds = [w.kind for w in self._weights]
        learns = model.bank.gradients is not None  # otherwise its checkpoint is only evaluated
        self._gradients = [_Gradients(model, i) for i in range(model.shape.n_layer) if learns]

    @torch.no_grad()
    def forward(self, tokens: Tensor, *, keep: bool = True) -> Kept:
        """Forward pass of tokens (B, T). Without `keep` no layer is kept."""
        bank = self.model.bank
        for column, name in enumerate(("resid_lambdas", "x0_lambdas")):
            self._mix[:, column] = bank.parameters[name].detach()
        at, kinds = (tokens.shape, tokens.stride()), self._kinds
        x = middle = x0 = self._begin(at, tokens, self._start)
        fixed = Fixed(tokens, x0, *self._rotation(x0.size(1)))
        heads: Any = self._enter((at, kinds[0]), x, fixed, self._weights[0].into)
        layers: list[Layer] = []
        for index, weights in enumerate(self._weights):
            attend = self.attend[self.model.windows[index]]
            y_BTHC, attend_back = attend(*heads[:3])
            y = y_BTHC.flatten(-2)
            if index < self._last:
                kind, into = (at, kinds[index + 1]), self._weights[index + 1].into
                hidden, following = self._between(kind, x, y, fixed, weights.out, into)
            else:
                hidden, following = self._leave(at, x, y, fixed, weights.out), None
            if keep:
                layers.append(Layer(x, heads, y, attend_back, hidden))
            x, heads = hidden.x, following
            if index == self._middle:
                middle = x
        out, inv = self._finish(at, x, middle, self._backout)
        return Kept(out, inv, middle, fixed, layers, at)

    @torch.no_grad()
    def backward(self, kept: Kept, d_result: Tensor, add_rows: AddRows, *, first: bool) -> None:
        """Backward pass. Adds gradients of weights and lambdas to the bank's (the first micro-batch
        of a step overwrites them), and passes those of table rows to `add_rows`. Empties `kept`.
        """
        d_x: Any
        at, kinds = kept.at, self._kinds
        d_x, d_middle, d_backout = self._d_finish(
            at, d_result, kept.out, kept.inv, kept.middle, self._backout
        )
        fixed, layers = kept.fixed, kept.layers
        if self._middle == self._last:
            d_x = d_x + d_middle
        d_x0, d_mix = torch.zeros_like(d_x), []
        d_out: Any = self._d_leave(at, d_x, layers[-1].hidden, self._weights[-1].out)
        for index in range(self._last, -1, -1):
            above = layers.pop()
            self._gradients[index].add_outward(d_x, d_out, above, first)
            d_heads = above.attend_back(d_out.y.view_as(above.heads.q))
            # free unneeded tensors before the next pass: the step's memory peaks here
            x, heads, d_u = above.x, above.heads, d_out.u
            above = d_out = d_x = None
            arguments = (d_heads, d_u, d_x0, x, heads, fixed, self._weights[index].backward)
            if index:
                d_kept = d_middle if index - 1 == self._middle else None
                hidden, out = layers[-1].hidden, self._weights[index - 1].out
                kind = (at, kinds[index], d_kept is None)
                d_in, d_out = self._d_between(kind, arguments, d_kept, hidden, out)
            else:
                d_in = self._d_enter((at, kinds[0]), *arguments)
            del arguments, d_heads, d_u, x
            self._gradients[index].add_inward(d_in, heads, first)
            if d_in.rows is not None:
                add_rows(parameters.value_embed(index), d_in.rows)
            d_x, d_x0 = d_in.x, d_in.x0
            d_mix.append(d_in.mix)
            del d_in, heads
        d_start = self._d_begin(at, d_x + d_x0, fixed.tokens, self._start)
        add_rows(parameters.WTE, d_start.rows)
        self._add_scalars(torch.stack(d_mix[::-1]), d_backout, d_start)

    def _rotation(self, length: int) -> tuple[Tensor, Tensor]:
        """RoPE: cos and sin (T, C) as in `layer.Fixed`."""
        if self._turn is None or len(self._turn[0]) != length:
            cos, sin = self.model.rotary(length)
            self._turn = torch.cat([cos, cos], dim=-1), torch.cat([sin, -sin], dim=-1)
        return self._turn

    @property
    def _backout(self) -> Tensor:
        return self.model.bank.parameters["backout_lambda"].detach()

    def _add_scalars(self, d_mix_L2: Tensor, d_backout: Tensor, d_start: DStart) -> None:
        gradient = self.model.bank.gradient
        gradient(parameters.RESID_LAMBDAS).add_(d_mix_L2[:, 0])
        gradient(parameters.X0_LAMBDAS).add_(d_mix_L2[:, 1])
        gradient(parameters.BACKOUT_LAMBDA).add_(d_backout)
        if d_start.smear_gate is not None and d_start.smear_lambda is not None:
            gradient(parameters.SMEAR_GATE).add_(d_start.smear_gate)
            gradient(parameters.SMEAR_LAMBDA).add_(d_start.smear_lambda)


@dataclass(frozen=True)
class _Weights:
    """kind: what distinguishes the pieces of one layer from those of another.

    into: with a separate product for v if v is kept as it is, or q and k would be kept with it;
    backward: with as few products as the bank allows.
    """

    kind: Hashable
    into: Inward
    backward: Inward
    out: Outward


def _start(model: GPT) -> Start:
    leaves = model.bank.leaves
    gate, factor = leaves.get(parameters.SMEAR_GATE), leaves.get(parameters.SMEAR_LAMBDA)
    smear = (None, None) if gate is None or factor is None else (gate.detach(), factor.detach())
    return Start(model.tables[parameters.WTE].detach(), *smear)


def _weights(model: GPT, index: int, mix: Tensor) -> _Weights:
    bank = model.bank
    names = parameters.attention_inputs(index)
    table = model.tables.get(parameters.value_embed(index))
    table = None if table is None else table.detach()
    ve_gate = bank.computed(parameters.attention(index, "ve_gate")) if table is not None else None
    joined = tuple(place.view(bank.compute_buffer) for place in bank.joined(names))
    apart = (*bank.joined(names[:-1]), *bank.joined(names[-1:]))
    forward = joined if table is not None else tuple(p.view(bank.compute_buffer) for p in apart)
    return _Weights(
        (len(forward), len(joined), table is not None),
        Inward(mix, forward, ve_gate, table),
        Inward(mix, joined, ve_gate, table),
        Outward(
            mix,
            bank.computed(parameters.attention(index, "c_proj")),
            bank.computed(parameters.mlp(index, "c_fc")),
            bank.computed(parameters.mlp(index, "c_proj")),
        ),
    )


class _Gradients:
    """A layer's weight gradients, summed in float32: views of the bank's."""

    def __init__(self, model: GPT, index: int) -> None:
        bank = model.bank
        assert bank.gradients is not None
        names = parameters.attention_inputs(index)
        self.qkv = [place.view(bank.gradients) for place in bank.joined(names)]
        self.attn_proj = bank.gradient(parameters.attention(index, "c_proj"))
        self.c_fc = bank.gradient(parameters.mlp(index, "c_fc"))
        self.mlp_proj = bank.gradient(parameters.mlp(index, "c_proj"))
        gate = parameters.attention(index, "ve_gate")
        self.ve_gate = bank.gradient(gate) if gate in bank.places else None

    def add_outward(self, d_x: Tensor, d: DOutward, kept: Layer, first: bool) -> None:
        _add(self.mlp_proj, d_x, kept.hidden.relu2, first)
        _add(self.c_fc, d.fc, kept.hidden.h, first)
        _add(self.attn_proj, d.u, kept.y, first)

    def add_inward(self, d: DInward, heads: Heads, first: bool) -> None:
        pieces = d.qkv.split([len(g) for g in self.qkv], dim=-1)
        for gradient, piece in zip(self.qkv, pieces, strict=True):
            _add(gradient, piece, heads.h, first)
        if self.ve_gate is not None and d.gate is not None:
            _add(self.ve_gate, d.gate, heads.h[..., :VE_GATE_CHANNELS], first)


def _add(total_OD: Tensor, gradient: Tensor, x: Tensor, first: bool) -> None:
    add_product(total_OD, gradient.flatten(0, -2), x.flatten(0, -2), first=first)
