"""The model: parameters under nanochat's names, their initial values, and the forward pass.

The arithmetic is in `architecture.py`, attention kernels in `attention.py`, the loss in `head.py`;
the weights are in a bank (`parameter_bank.py`). Training uses `step.py`, which computes gradients
differently; `forward` and `loss` here are for evaluation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from trainer.contract.shape import ModelShape
from trainer.model import architecture, attention, head, parameters
from trainer.model.architecture import KVCache, lookup
from trainer.model.embedding import TouchedRows
from trainer.model.parameter_bank import ParameterBank

Reduction = Literal["mean", "sum", "none"]


class GPT(nn.Module):
    """A GPT of `shape` on `device`. Weights are zero until `init_weights` or `load_state_dict`.

    compute_dtype: of activations and matrix products. Master weights are float32; embedding tables
    are stored in the compute dtype, except under float16 or by the recipe (docs/recipe.md, Model).
    """

    def __init__(
        self, shape: ModelShape, *, compute_dtype: torch.dtype, device: torch.device | str
    ) -> None:
        super().__init__()
        self.shape = shape
        self.compute_dtype = compute_dtype
        self.device = torch.device(device)
        self.windows = attention.windows(shape)
        self.attend: dict[int | None, attention.Attend] = {
            window: attention.bind("sdpa", window) for window in self.windows
        }
        self.bank = ParameterBank(shape, compute_dtype, self.device)
        self.tables = {
            name: nn.Parameter(torch.zeros(size, dtype=self.table_dtype, device=self.device))
            for name, size in parameters.parameter_shapes(shape).items()
            if name in parameters.table_names(shape)
        }
        for name in parameters.parameter_shapes(shape):
            own = self.tables if name in self.tables else self.bank.parameters
            _register(self, name, own[name])
        self.register_load_state_dict_post_hook(lambda model, _: model.bank.refresh())
        self._rotary: tuple[Tensor, Tensor] | None = None
        self.touched: TouchedRows | None = None  # table gradients of the current step

    @property
    def table_dtype(self) -> torch.dtype:
        """Dtype of embedding tables and their moments."""
        is_wide = self.shape.traits.tables == "float32" or self.compute_dtype == torch.float16
        return torch.float32 if is_wide else self.compute_dtype

    @torch.no_grad()
    def init_weights(self, seed: int) -> None:
        """Initial values (docs/recipe.md, Model), drawn on the CPU: the same on every device."""
        draw = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            parameter.copy_(_initial(name, parameter.shape, self.shape, draw))
        self.bank.refresh()

    def forward(self, tokens_BT: Tensor, cache: KVCache | None = None) -> Tensor:
        """Softcapped float32 logits (B, T, vocab_size); T may exceed sequence_len.

        cache: KV cache of the previous tokens, to which these are appended; None: whole rows.
        """
        return architecture.logits(self.hidden(tokens_BT, cache), self.head_weight)

    def loss(self, tokens_BT: Tensor, targets_BT: Tensor, reduction: Reduction = "mean") -> Tensor:
        """Cross entropy in nats, ignoring targets of -1: mean, sum, or one per token (B, T).

        The mean is 0 if no target counts.
        """
        x_BTD = self.hidden(tokens_BT)
        targets_N = targets_BT.reshape(-1)
        losses_N = head.token_losses(x_BTD.flatten(0, 1), self.head_weight, targets_N)
        if reduction == "none":
            return losses_N.view(targets_BT.shape)
        total = losses_N.sum()
        return total if reduction == "sum" else total / head.num_counted(targets_N)

    def hidden(self, tokens_BT: Tensor, cache: KVCache | None = None) -> Tensor:
        """Hidden states for the head: (B, T, D) in the compute dtype."""
        weights = architecture.trunk_weights(self.bank.leaves)
        if cache is None:
            turn = self.rotary(tokens_BT.size(1))
            return architecture.hidden(tokens_BT, self.tables, weights, turn, self.attends)
        end = cache.length + tokens_BT.size(1)
        cos, sin = (table[cache.length :] for table in self.rotary(end))
        x_BTD = architecture.hidden(
            tokens_BT,
            self.tables,
            weights,
            (cos, sin),
            cache.attends(),
            cache.previous(tokens_BT),
        )
        cache.advance(tokens_BT)
        return x_BTD

    def rows_of(self, table: str, tokens_BT: Tensor) -> Tensor:
        return lookup(tokens_BT, self.tables[table], self.compute_dtype)

    def trunk(
        self,
        rows: Mapping[str, Tensor],
        start_function: Callable[..., Tensor],
        block_function: Callable[..., Tensor],
        finish_function: Callable[..., Tensor],
    ) -> Tensor:
        """`architecture.trunk` with replaced functions, from the table rows (B, T, W) by name."""
        rows_BTD = rows[parameters.WTE]
        return architecture.trunk(
            rows_BTD,
            {
                layer: rows[name]
                for layer in range(self.shape.n_layer)
                if (name := parameters.value_embed(layer)) in rows
            },
            architecture.trunk_weights(self.bank.leaves),
            self.rotary(rows_BTD.size(1)),
            self.attends,
            start_function=start_function,
            block_function=block_function,
            finish_function=finish_function,
        )

    @property
    def attends(self) -> list[attention.Attend]:
        """The attention function of each layer."""
        return [self.attend[window] for window in self.windows]

    @property
    def head_weight(self) -> Tensor:
        """Head weight (vocab_size, D) in the compute dtype, without the padding rows."""
        return self.bank.leaves[parameters.LM_HEAD][: self.shape.vocab_size]

    def rotary(self, length: int) -> tuple[Tensor, Tensor]:
        """RoPE: cached cos and sin (length, C/2) of the positions from 0."""
        if self._rotary is None or len(self._rotary[0]) < length:
            longest = max(length, self.shape.sequence_len)
            positions = torch.arange(longest, dtype=torch.float32, device=self.device)
            head_dim, dtype = self.shape.head_dim, self.compute_dtype
            self._rotary = architecture.rotary(positions, head_dim, dtype)
        cos, sin = self._rotary
        return cos[:length], sin[:length]

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Load weights by copying. Refuses `assign`, which would take parameters off the bank."""
        if assign:
            raise ValueError("parameters live in a bank: load_state_dict cannot assign tensors")
        return super().load_state_dict(state_dict, strict=strict)


def _register(root: nn.Module, name: str, parameter: nn.Parameter) -> None:
    """Register a parameter under its dotted name, creating empty modules on the path."""
    *path, last = name.split(".")
    module = root
    for part in path:
        if part not in module._modules:
            module.add_module(part, nn.Module())
        module = module.get_submodule(part)
    module.register_parameter(last, parameter)


def _initial(name: str, size: torch.Size, shape: ModelShape, draw: torch.Generator) -> Tensor:
    """Initial values (docs/recipe.md, Model); float32 on the CPU."""
    width = math.sqrt(3 / shape.n_embd)
    layer = torch.arange(shape.n_layer) / max(1, shape.n_layer - 1)
    kind = name.removesuffix(".weight").rsplit(".", 1)[-1]
    if name == parameters.WTE:
        return torch.empty(size).normal_(0.0, 0.8, generator=draw)
    if name == parameters.LM_HEAD:
        return torch.empty(size).normal_(0.0, 0.001, generator=draw)
    if kind == "c_proj" or name == "smear_lambda":
        return torch.zeros(size)
    if kind in ("smear_gate", "ve_gate"):
        return torch.empty(size).uniform_(0.0, 0.02, generator=draw)
    if name == "backout_lambda":
        return torch.full(size, 0.2)
    if name == "resid_lambdas":
        return 1.15 - 0.10 * layer
    if name == "x0_lambdas":
        return 0.20 - 0.15 * layer
    if name.startswith("value_embeds.") and shape.traits.value_init_normal:
        return torch.empty(size).normal_(generator=draw)
    bound = 0.4 * width if kind == "c_fc" else width
    return torch.empty(size).uniform_(-bound, bound, generator=draw)
