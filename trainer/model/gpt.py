"""The model: parameters under nanochat's names, their initial values, and the forward pass.

The arithmetic of a layer is in `block.py`, attention in `attention.py`, the loss in `head.py`; the
weights lie in a bank (`parameter_bank.py`). Training goes through `step.py`, which makes gradients
its own way; `forward` and `loss` here are for evaluation and samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from trainer.contract.shape import ModelShape
from trainer.model import attention, head, parameters
from trainer.model.block import BlockWeights, block, finish, rotary, start
from trainer.model.embedding import TouchedRows, lookup
from trainer.model.parameter_bank import ParameterBank

Reduction = Literal["mean", "sum", "none"]
BlockFunction = Callable[..., Tensor]


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
        self.touched: TouchedRows | None = None  # table gradients of the step under way

    @property
    def table_dtype(self) -> torch.dtype:
        """What embedding tables and their moments are stored in."""
        is_wide = self.shape.traits.tables == "float32" or self.compute_dtype == torch.float16
        return torch.float32 if is_wide else self.compute_dtype

    @torch.no_grad()
    def init_weights(self, seed: int) -> None:
        """Initial values (docs/recipe.md, Model), drawn on the CPU: the same on every device."""
        draw = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            parameter.copy_(_initial(name, parameter.shape, self.shape, draw))
        self.bank.refresh()

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """Softcapped float32 logits (B, T, vocab_size); T may exceed sequence_len."""
        x_BTD = self.hidden(tokens_BT)
        return head.softcap(x_BTD @ self.head_weight.T)

    def loss(self, tokens_BT: Tensor, targets_BT: Tensor, reduction: Reduction = "mean") -> Tensor:
        """Cross entropy in nats, targets of -1 not counted: mean, sum, or one per token (B, T)."""
        x_BTD = self.hidden(tokens_BT)
        targets_N = targets_BT.reshape(-1)
        losses_N = head.token_losses(x_BTD.flatten(0, 1), self.head_weight, targets_N)
        if reduction == "none":
            return losses_N.view(targets_BT.shape)
        total = losses_N.sum()
        return total if reduction == "sum" else total / (targets_N != head.IGNORED).sum()

    def hidden(self, tokens_BT: Tensor) -> Tensor:
        """What the head reads: (B, T, D) in the compute dtype."""
        rows = {name: self.rows_of(name, tokens_BT) for name in self.tables}
        return self.trunk(rows)

    def rows_of(self, table: str, tokens_BT: Tensor) -> Tensor:
        return lookup(tokens_BT, self.tables[table], self.compute_dtype)

    def trunk(
        self,
        rows: Mapping[str, Tensor],
        start_function: BlockFunction = start,
        block_function: BlockFunction = block,
        finish_function: BlockFunction = finish,
    ) -> Tensor:
        """Table rows of every token -> (B, T, D) before the head. The functions may be compiled."""
        leaf = self.bank.leaves
        smear = (leaf.get(parameters.SMEAR_GATE), leaf.get(parameters.SMEAR_LAMBDA))
        x = start_function(rows[parameters.WTE], *smear)
        x0 = kept = x.view_as(x)  # another name: a compiler would make a layer 0 of its own
        cos, sin = self.rotary(x.size(1))
        layers = zip(leaf["resid_lambdas"].unbind(), leaf["x0_lambdas"].unbind(), strict=True)
        for layer, (resid, x0_lambda) in enumerate(layers):
            x = block_function(
                x,
                x0,
                rows.get(parameters.value_embed(layer)),
                self._block_weights(layer, resid, x0_lambda),
                cos,
                sin,
                self.shape.head_dim,
                self.attend[self.windows[layer]],
            )
            if layer == self.shape.n_layer // 2:
                kept = x
        return finish_function(x, kept, leaf["backout_lambda"])

    @property
    def head_weight(self) -> Tensor:
        """(vocab_size, D) in the compute dtype: the padding rows are cut away."""
        return self.bank.leaves[parameters.LM_HEAD][: self.shape.vocab_size]

    def rotary(self, length: int) -> tuple[Tensor, Tensor]:
        if self._rotary is None or len(self._rotary[0]) < length:
            longest = max(length, self.shape.sequence_len)
            self._rotary = rotary(longest, self.shape.head_dim, self.compute_dtype, self.device)
        cos, sin = self._rotary
        return cos[:length], sin[:length]

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Copy weights in. `assign` would tear the parameters out of their bank: refused."""
        if assign:
            raise ValueError("parameters live in a bank: load_state_dict cannot assign tensors")
        return super().load_state_dict(state_dict, strict=strict)

    def _block_weights(self, layer: int, resid: Tensor, x0_lambda: Tensor) -> BlockWeights:
        leaf, of = self.bank.leaves, parameters.attention
        return BlockWeights(
            c_q=leaf[of(layer, "c_q")],
            c_k=leaf[of(layer, "c_k")],
            c_v=leaf[of(layer, "c_v")],
            attn_proj=leaf[of(layer, "c_proj")],
            c_fc=leaf[parameters.mlp(layer, "c_fc")],
            mlp_proj=leaf[parameters.mlp(layer, "c_proj")],
            resid=resid,
            x0=x0_lambda,
            ve_gate=leaf.get(of(layer, "ve_gate")),
        )


def _register(root: nn.Module, name: str, parameter: nn.Parameter) -> None:
    """Hang a parameter under its dotted name, with empty modules on the way."""
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
