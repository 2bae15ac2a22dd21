"""The optimizer: AdamW for tables, head and scalars, Muon for the matrices inside the layers.

State is laid out as the banks: one stack of momentum per matrix shape, one vector for all scalars.
State names are flat and stable: `adamw.<parameter>.exp_avg`, `muon.<rows>x<cols>.momentum`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from trainer.contract.plan import Hyperparameters
from trainer.contract.recipe import MUON
from trainer.model import parameters
from trainer.model.gpt import GPT
from trainer.model.parameter_bank import BankPlace
from trainer.optim.adamw import adamw_update, bias_correction
from trainer.optim.loss_scale import LossScale
from trainer.optim.muon import muon_update
from trainer.optim.shards import Shards, cut
from trainer.runtime.world import World

ADAMW_STEP = "adamw.step"


class Optimizer:
    """Updates `model` with the gradients in its bank and its touched rows.

    adamw, muon: the update functions, which a caller may replace by compiled ones;
    adamw_from_count: AdamW that computes the rates itself, as on CUDA.
    lanes, world: Muon's stacks are updated in one piece per lane; with several ranks each stores
    only the momentum of its own pieces, and sends the weights that it updated to the others.
    """

    def __init__(
        self, model: GPT, hyper: Hyperparameters, *, lanes: int = 1, world: World | None = None
    ) -> None:
        self.model, self.hyper = model, hyper
        self.world = world or World()
        self.adamw: Callable[..., None] = adamw_update
        self.adamw_from_count: Callable[..., None] | None = None
        self.muon: Callable[..., None] = muon_update
        self.variant = MUON[hyper.muon]
        bank, device = model.bank, model.device
        bank.attach_gradients()
        self.count = torch.zeros((), dtype=torch.int64, device=device)
        self.tables = {n: _Moments(t) for n, t in model.tables.items()}
        self.head = _Moments(bank.parameters[parameters.LM_HEAD])
        self.scalars = _Moments(bank.scalars.view(bank.weights))
        self.groups = parameters.muon_groups(model.shape)
        self.shards = {
            g.key: Shards(cut(len(g.names), lanes), self.world.rank, self.world.size)
            for g in self.groups
        }
        self.momentum = {g.key: self._own_zeros(bank.stacks[g.key].shape, g) for g in self.groups}
        self.second = {g.key: self._own_zeros(g.second_shape, g) for g in self.groups}
        self.loss_scale = LossScale(device) if model.compute_dtype == torch.float16 else None
        self._rates = _adam_rates(model, hyper)

    @torch.no_grad()
    def step(
        self,
        *,
        lr_multiplier: float,
        momentum: float,
        weight_decay: float,
        finite: Tensor | None = None,
    ) -> None:
        """Update every parameter once. weight_decay: Muon's, absolute, scaled and scheduled.

        finite: a device bool; if false, weights and state keep their bits. On a GPU this needs no
        host synchronization; on the CPU nothing is computed.
        """
        if finite is not None and finite.device.type == "cpu":
            if not finite:
                return
            finite = None
        count = self.count + 1
        finish = self._step_muon(lr_multiplier, momentum, weight_decay, finite)
        self._step_adamw(count, lr_multiplier, finite)  # while updated matrices pass between ranks
        finish()
        self.count.copy_(count if finite is None else torch.where(finite, count, self.count))
        self.model.bank.refresh()

    def state_dict(self) -> dict[str, Tensor]:
        """Flat state of live views: clone before the next step. Names never change. With several
        ranks, Muon's state is only of this rank's matrices; `collected_state` has all of it."""
        state = {ADAMW_STEP: self.count}
        for name, (m, v) in self._adam_moments().items():
            state[f"adamw.{name}.exp_avg"] = m
            state[f"adamw.{name}.exp_avg_sq"] = v
        for key in self.momentum:
            state[f"muon.{key}.momentum"] = self.momentum[key]
            state[f"muon.{key}.second_momentum"] = self.second[key]
        return state | (self.loss_scale.state_dict() if self.loss_scale else {})

    @torch.no_grad()
    def collected_state(self) -> dict[str, Tensor]:
        """The complete state on rank 0, the own part on others. A collective call."""
        state = self.state_dict()
        if self.world.size == 1:
            return state
        for name, own, key in self._sharded():
            matrix = own.shape[1:]
            sizes = [count * matrix.numel() for count in self.shards[key].counts()]
            whole = self.world.collect(own.reshape(-1), sizes)
            if whole is not None:
                state[name] = whole.view(-1, *matrix)
        return state

    @torch.no_grad()
    def spread_state(self, state: Mapping[str, Tensor] | None) -> None:
        """Send rank 0's complete state to all; each rank keeps its part. Others pass None."""
        sharded = {name for name, _, _ in self._sharded()}
        for name, tensor in self.state_dict().items():
            if name not in sharded:
                if state is not None:
                    tensor.copy_(state[name])
                self.world.broadcast_tensor(tensor)
        for name, own, key in self._sharded():
            shard = self.shards[key]
            whole = own.new_zeros(sum(shard.counts()), *own.shape[1:])
            if state is not None:
                whole.copy_(state[name])
            self.world.broadcast_tensor(whole)
            own.copy_(whole[shard.first : shard.first + len(own)])

    def whole_layout(self) -> dict[str, Tensor]:
        """Tensors with the names, shapes and dtypes of the complete state, without contents."""
        state = {n: t.to("meta") for n, t in self.state_dict().items()}
        for name, own, key in self._sharded():
            count = sum(self.shards[key].counts())
            state[name] = torch.empty(count, *own.shape[1:], dtype=own.dtype, device="meta")
        return state

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load a state by copying. Raises ValueError unless names and shapes match exactly."""
        own = self.state_dict()
        if own.keys() != state.keys():
            different = sorted(own.keys() ^ state.keys())
            raise ValueError(f"optimizer state does not match the model: {', '.join(different)}")
        for name, tensor in own.items():
            if tensor.shape != state[name].shape:
                raise ValueError(
                    f"optimizer state {name}: shape {tuple(state[name].shape)} where the model "
                    f"has {tuple(tensor.shape)}"
                )
        for name, tensor in own.items():
            tensor.copy_(state[name])

    # --- AdamW -----------------------------------------------------------------------------------

    def _step_adamw(self, count: Tensor, lr_multiplier: float, finite: Tensor | None) -> None:
        bank = self.model.bank
        assert bank.gradients is not None
        at = (count, self._adam_multiplier(lr_multiplier), finite)
        for name, table in self.model.tables.items():
            gradient, slots = self._table_gradient(name)
            self._update(name, table, gradient, slots, self.tables[name], at)
        lm_head = bank.parameters[parameters.LM_HEAD]
        gradient = bank.gradient(parameters.LM_HEAD)
        self._update(parameters.LM_HEAD, lm_head, gradient, None, self.head, at)
        scalars, gradient = bank.scalars.view(bank.weights), bank.scalars.view(bank.gradients)
        self._update("scalars", scalars, gradient, None, self.scalars, at)

    def _adam_multiplier(self, value: float) -> float | Tensor:
        """The multiplier as a tensor for compiled functions, which make numbers constants."""
        if self.adamw_from_count is None:
            return value
        return torch.full((), value, device=self.model.device)

    def _table_gradient(self, name: str) -> tuple[Tensor, Tensor | None]:
        touched = self.model.touched
        if touched is not None:
            return touched.gradients[name], touched.slot_V
        dense = self.model.tables[name].grad
        return (torch.zeros_like(self.model.tables[name]) if dense is None else dense), None

    def _update(
        self,
        name: str,
        p: Tensor,
        gradient: Tensor,
        slots: Tensor | None,
        moments: _Moments,
        at: tuple[Tensor, float | Tensor, Tensor | None],
    ) -> None:
        count, lr_multiplier, finite = at
        if self.adamw_from_count is not None:
            own = (p.detach(), gradient, slots, moments.m, moments.v, *self._rates[name])
            self.adamw_from_count(*own, lr_multiplier, count, finite)
            return
        lr, beta1, beta2, log_beta1, log_beta2, decay = self._rates[name]
        bias = (bias_correction(log_beta1, count), bias_correction(log_beta2, count))
        rates = (lr * lr_multiplier, beta1, beta2, *bias, decay)
        self.adamw(p.detach(), gradient, slots, moments.m, moments.v, *rates, finite)

    def _adam_moments(self) -> dict[str, tuple[Tensor, Tensor]]:
        """(exp_avg, exp_avg_sq) by parameter; those of scalars are slices of one vector."""
        moments = {n: (s.m, s.v) for n, s in self.tables.items()}
        moments[parameters.LM_HEAD] = (self.head.m, self.head.v)
        start = self.model.bank.scalars.offset
        for name in parameters.scalar_names(self.model.shape):
            place = self.model.bank.places[name]
            inside = BankPlace(place.offset - start, place.shape)
            moments[name] = (inside.view(self.scalars.m), inside.view(self.scalars.v))
        return moments

    # --- Muon ------------------------------------------------------------------------------------

    def _step_muon(
        self, lr_multiplier: float, momentum: float, weight_decay: float, finite: Tensor | None
    ) -> Callable[[], None]:
        """Update this rank's matrices. Those of other ranks are received while the next stack is
        updated; the returned function waits for those of the last stack."""
        bank, finish = self.model.bank, _nothing
        assert bank.gradients is not None
        values = (self.hyper.matrix_lr * lr_multiplier, momentum, weight_decay)
        # filled on the device: a copy from the host would wait for it
        rates = [torch.full((), v, device=self.model.device) for v in values]
        bf16 = self.variant.always_bf16 or self.model.compute_dtype == torch.bfloat16
        for group in self.groups:
            place, shard = bank.stacks[group.key], self.shards[group.key]
            for begin, end in shard.own:
                piece = _matrices(place, begin, end)
                stacks = (piece.view(bank.weights), piece.view(bank.gradients))
                state = self._own_state(group.key, begin, end)
                self.muon(*stacks, *state, *rates, finite, bf16, self.variant)
            if self.world.size > 1:
                matrix = math.prod(place.shape[1:])
                sizes = [count * matrix for count in shard.counts()]
                finish()
                finish = self.world.all_gather_parts(place.view(bank.weights).view(-1), sizes)
        return finish

    def _own_state(self, key: str, begin: int, end: int) -> tuple[Tensor, Tensor]:
        """Both momenta of the matrices [begin, end) of a stack; whole tensors if that is all."""
        momentum, second, first = self.momentum[key], self.second[key], self.shards[key].first
        if end - begin == len(momentum):
            return momentum, second
        part = slice(begin - first, end - first)
        return momentum[part].detach(), second[part].detach()

    def _own_zeros(self, size: tuple[int, ...], group: parameters.MuonGroup) -> Tensor:
        count = self.shards[group.key].counts()[self.world.rank]
        return torch.zeros(count, *size[1:], device=self.model.device)

    def _sharded(self) -> list[tuple[str, Tensor, str]]:
        """(name in the state, own tensor, key of the stack) of Muon's state."""
        return [
            (f"muon.{key}.{kind}", own[key], key)
            for key in self.momentum
            for kind, own in (("momentum", self.momentum), ("second_momentum", self.second))
        ]


def _nothing() -> None:
    """Wait for nothing: no matrices are being received."""


def _matrices(place: BankPlace, begin: int, end: int) -> BankPlace:
    """The place of the matrices [begin, end) of a stack."""
    count, *matrix = place.shape
    if (begin, end) == (0, count):
        return place
    return BankPlace(place.offset + begin * math.prod(matrix), (end - begin, *matrix))


class _Moments:
    """First and second moment of one AdamW parameter, stored as the parameter is."""

    def __init__(self, parameter: Tensor) -> None:
        self.m = torch.zeros_like(parameter, requires_grad=False)
        self.v = torch.zeros_like(parameter, requires_grad=False)


def _adam_rates(model: GPT, hyper: Hyperparameters) -> dict[str, list[Tensor]]:
    """lr, betas, their logarithms, weight decay by parameter; of scalars one number per element."""
    rates: dict[str, list[Tensor]] = {}
    for group in parameters.adam_groups(model.shape):
        *betas, decay = group.settings(hyper)
        logs = (math.log(beta) if beta else -math.inf for beta in betas)
        values = (group.lr(hyper), *betas, *logs, decay)
        for name in group.names:
            rates[name] = [torch.tensor(v, device=model.device) for v in values]
    sizes = [(name, model.bank.places[name].size) for name in parameters.scalar_names(model.shape)]
    columns = zip(*([rate.expand(size) for rate in rates[n]] for n, size in sizes), strict=True)
    return rates | {"scalars": [torch.cat(column) for column in columns]}
