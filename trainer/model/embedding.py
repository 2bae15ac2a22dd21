"""Sparse embedding gradients: only rows of the tables that were looked up.

A step touches a small part of the vocabulary. Its tokens are numbered once per step ("slots"), and
every table's gradient is a compact (slots, width) tensor: a dense one, zeroed, scattered and added
for each table and micro-batch, costs several times more (tests/bench/head.py measures it; on two
CPU threads, vocabulary 32,768).

aten's own embedding backward sums each row in token order (one owner per row on the CPU, a sorted
segment sum on CUDA), so the bits are reproducible; a compiled scatter uses atomics. On CUDA with
Triton one kernel adds the bf16 gradients of a table directly to the float32 rows that the
micro-batch touches, with one sort for all tables; aten sorts for each table, copies to float32,
fills new rows and adds them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


class Slots:
    """The slots (B, T) of a micro-batch's tokens, sorted once for all tables where a kernel sums
    the rows."""

    def __init__(self, slots_BT: Tensor, uses_kernel: bool) -> None:
        self.slots_BT = slots_BT
        self.sorted_N = self.order_N = None
        if uses_kernel:
            self.sorted_N, self.order_N = torch.sort(slots_BT.flatten(), stable=True)


class TouchedRows:
    """The table rows that a step touches, and the sum of their gradients so far.

    num_rows: U, their number. slot_V: token id -> slot, U if a row is not touched.
    uses_kernel: True if `embedding_kernel.py` sums the rows, False for aten.
    """

    def __init__(
        self,
        tokens: Sequence[Tensor],
        vocab_size: int,
        device: torch.device,
        uses_kernel: bool = False,
    ) -> None:
        self.num_rows, slot_V = _numbered(tokens, vocab_size)
        self.uses_kernel = uses_kernel
        self.slot_V = _sent(slot_V, device)
        self.gradients: dict[str, Tensor] = {}

    def slots(self, tokens_BT: Tensor) -> Slots:
        return Slots(self.slot_V[tokens_BT], self.uses_kernel)

    def add(self, table: str, gradient_BTW: Tensor, slots: Slots) -> None:
        """Add one micro-batch's row gradients to `table`'s float32 sum (U + 1, W).

        The last row stays zero: untouched rows read it.
        """
        if slots.sorted_N is not None and slots.order_N is not None:
            self._add_sorted(table, gradient_BTW.flatten(0, 1), slots.sorted_N, slots.order_N)
            return
        rows = torch.ops.aten.embedding_dense_backward(
            gradient_BTW.float(), slots.slots_BT, self.num_rows + 1, -1, False
        )
        before = self.gradients.get(table)
        self.gradients[table] = rows if before is None else before.add_(rows)

    def _add_sorted(
        self, table: str, gradient_NW: Tensor, sorted_N: Tensor, order_N: Tensor
    ) -> None:
        from trainer.model.embedding_kernel import add_rows

        if table not in self.gradients:
            size = (self.num_rows + 1, gradient_NW.size(1))
            self.gradients[table] = torch.zeros(size, device=gradient_NW.device)
        add_rows(self.gradients[table], gradient_NW, sorted_N, order_N)


def _numbered(tokens: Sequence[Tensor], vocab_size: int) -> tuple[int, Tensor]:
    """(U, slot_V) of `TouchedRows`. By numpy: beside other work torch's threads take a hundred
    times as long for these few indices (7.9 ms of a step against 0.08)."""
    if tokens[0].device.type != "cpu":  # counting would synchronize with the device: take all rows
        return vocab_size, torch.arange(vocab_size, device=tokens[0].device)
    is_touched_V = np.zeros(vocab_size, dtype=bool)
    for some in tokens:
        is_touched_V[some.numpy().reshape(-1)] = True
    slot_V = np.cumsum(is_touched_V) - 1
    num_rows = int(slot_V[-1]) + 1
    slot_V[~is_touched_V] = num_rows
    return num_rows, torch.from_numpy(slot_V)


def _sent(tensor: Tensor, device: torch.device) -> Tensor:
    """Asynchronous copy to the device, without waiting for its queued work."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
