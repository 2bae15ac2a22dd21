"""Loss of each token by the functions that are compiled for training, forward only.

Shared by evaluations in a run and evaluation jobs: both use the same compiled functions, so the
same weights have the same value in both.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trainer.model import head
from trainer.model.gpt import GPT
from trainer.model.trunk import Trunk
from trainer.runtime.compiler import Compiler


class CompiledLosses:
    """Token losses of micro-batches of `rows` rows of sequence_len tokens; other shapes are not
    worth compiling. Without a trunk the model's own forward pass computes everything.
    """

    def __init__(self, model: GPT, trunk: Trunk | None, compiler: Compiler, rows: int) -> None:
        self.model, self.trunk = model, trunk
        self._shape = (rows, model.shape.sequence_len)
        self._chunk_losses = compiler(head.chunk_token_losses)

    @torch.no_grad()
    def __call__(self, tokens_BT: Tensor, targets_BT: Tensor) -> Tensor:
        """Losses in nats (B, T) float32, 0 where the target is -1; keeps no activations."""
        if self.trunk is None or tuple(tokens_BT.shape) != self._shape:
            return self.model.loss(tokens_BT, targets_BT, reduction="none")
        x_BTD = self.trunk.forward(tokens_BT, keep=False).out
        weight_VD, targets_N = self.model.head_weight.detach(), targets_BT.reshape(-1)
        losses_N = head.token_losses(x_BTD.flatten(0, 1), weight_VD, targets_N, self._chunk_losses)
        return losses_N.view_as(targets_BT)
