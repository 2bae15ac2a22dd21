"""Gradients of the embedding tables, for touched rows only.

A step touches a small part of the vocabulary. Its tokens are numbered once per step ("slots"), and
every table's gradient is a compact (slots, width) tensor: a dense one, zeroed, scattered and added
for each table and micro-batch, costs several times more. Measured on two CPU threads at
vocabulary 32,768: see tests/bench/head.py for the numbers of this machine.

aten's own embedding backward sums each row in token order (one owner per row on the CPU, a sorted
segment sum on CUDA), so bits do not differ between repeats; a compiled scatter uses atomics.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class TouchedRows:
    """Which rows a step touches, and the sum of their gradients so far.

    num_rows: U, how many. slot_V: token id -> slot, U where a row is not touched.
    """

    def __init__(self, tokens: Sequence[Tensor], vocab_size: int, device: torch.device) -> None:
        everything = torch.cat([t.reshape(-1) for t in tokens])
        if everything.device.type == "cpu":
            rows_U = torch.unique(everything, sorted=True)
        else:  # counting them would make the host wait for the device: take all rows
            rows_U = torch.arange(vocab_size, device=everything.device)
        self.num_rows = len(rows_U)
        slot_V = torch.full((vocab_size,), self.num_rows, device=everything.device)
        slot_V[rows_U] = torch.arange(self.num_rows, device=everything.device)
        self.slot_V = _sent(slot_V, device)
        self.gradients: dict[str, Tensor] = {}

    def slots(self, tokens_BT: Tensor) -> Tensor:
        return self.slot_V[tokens_BT]

    def add(self, table: str, gradient_BTW: Tensor, slots_BT: Tensor) -> None:
        """Add one micro-batch's row gradients to `table`'s float32 sum (U + 1, W).

        The last row stays zero: it is what an untouched row reads.
        """
        rows = torch.ops.aten.embedding_dense_backward(
            gradient_BTW.float(), slots_BT, self.num_rows + 1, -1, False
        )
        before = self.gradients.get(table)
        self.gradients[table] = rows if before is None else before.add_(rows)


def _sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A copy on the device, without waiting for the work that it still has to do."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def lookup(tokens_BT: Tensor, table_VW: Tensor, compute_dtype: torch.dtype) -> Tensor:
    """Rows of a table (B, T, W) in the compute dtype."""
    return torch.nn.functional.embedding(tokens_BT, table_VW).to(compute_dtype)
