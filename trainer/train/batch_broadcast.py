"""Broadcast of a step's batches: only rank 0 reads the corpus; all ranks get the step's tokens.

Each rank takes its own micro-batches from the block, and counts the table rows that the whole step
touches. So cursor, sha256 and order of the data do not depend on the number of ranks.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trainer.data.loader import Loader
from trainer.runtime.world import World
from trainer.train.forward_backward import MicroBatch

FAILED = 1


@dataclass(frozen=True)
class StepBatches:
    """Batches of a step. own: this rank's micro-batches. tokens: inputs of all micro-batches of
    the step, if there are more. sha256: over the contents of all, on rank 0."""

    own: list[MicroBatch]
    tokens: list[Tensor] | None
    sha256: str


class BatchesUnavailable(Exception):
    """Rank 0 could not read the step's batches; its own error gives the cause."""


class NoLoader:
    """Placeholder loader of ranks other than 0; rank 0 has the data."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass

    def close(self) -> None:
        pass


def next_step(loader: Loader | NoLoader, accumulation: int, deal: BatchBroadcast) -> StepBatches:
    """The next `accumulation` micro-batches. Raises the loader's errors, NotDealt elsewhere."""
    if deal.world.size == 1:
        assert isinstance(loader, Loader)
        micro_batches, digest = _read(loader, accumulation)
        return StepBatches(micro_batches, None, digest)
    return deal.step(loader, accumulation)


def _read(loader: Loader, accumulation: int) -> tuple[list[MicroBatch], str]:
    """Read micro-batches to the host, pinned for a GPU: the step moves them, and counts the table
    rows they touch without synchronizing the device."""
    digest, micro = hashlib.sha256(), []
    for _ in range(accumulation):
        batch = loader.next_batch()
        digest.update(bytes.fromhex(batch.sha256))
        tokens_2BT = torch.from_numpy(batch.tokens_2BT)
        micro.append((tokens_2BT[0], tokens_2BT[1]))
    return micro, digest.hexdigest()


@dataclass(frozen=True)
class BatchBroadcast:
    """Format of a step's rows when they are sent between ranks.

    shifted: targets are the inputs one position later, as in packed documents, so that rows of
    T + 1 tokens contain both. vocab_size: token ids are below it; they are sent as 16 bits if they
    fit and no target is masked.
    """

    world: World
    rows: int
    sequence_len: int
    shifted: bool
    pin: bool
    vocab_size: int

    def block(self, accumulation: int) -> Tensor:
        """Buffer of a broadcast: a flag that rank 0 has data, and `accumulation` micro-batches."""
        fits = self.shifted and self.vocab_size <= 2**15
        dtype = torch.int16 if fits else torch.int32
        return torch.zeros(1 + accumulation * self._tokens, dtype=dtype)

    def step(self, loader: Loader | NoLoader, accumulation: int) -> StepBatches:
        """Broadcast the next step from rank 0. Raises NotDealt if rank 0 could not read it."""
        block = self.block(accumulation)
        digest, failure = "", None
        if isinstance(loader, Loader):
            try:
                digest = self._fill(block[1:].view(accumulation, -1), loader)
            except Exception as error:  # the other ranks wait for this step: tell them first
                failure, block[0] = error, FAILED
        self.world.broadcast_block(block)
        if failure is not None:
            raise failure
        if block[0] == FAILED:
            raise BatchesUnavailable("rank 0 could not read the step's batches")
        return self._dealt(block[1:].view(accumulation, -1), digest)

    def _fill(self, block_AN: Tensor, loader: Loader) -> str:
        micro_batches, digest = _read(loader, len(block_AN))
        for row_N, (inputs_BT, targets_BT) in zip(block_AN, micro_batches, strict=True):
            if self.shifted:
                rows_BS = row_N.view(self.rows, -1)
                rows_BS[:, :-1], rows_BS[:, -1] = inputs_BT, targets_BT[:, -1]
            else:
                halves_2BT = row_N.view(2, self.rows, -1)
                halves_2BT[0], halves_2BT[1] = inputs_BT, targets_BT
        return digest

    def _dealt(self, block_AN: Tensor, digest: str) -> StepBatches:
        inputs, targets = self._split(block_AN)
        each = len(block_AN) // self.world.size
        begin = self.world.rank * each
        own = [(self._wide(inputs[i]), self._wide(targets[i])) for i in range(begin, begin + each)]
        return StepBatches(own, [tokens.long() for tokens in inputs], digest)

    def _split(self, block_AN: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs and targets (A, B, T)."""
        if not self.shifted:
            halves_A2BT = block_AN.view(len(block_AN), 2, self.rows, self.sequence_len)
            return halves_A2BT[:, 0], halves_A2BT[:, 1]
        rows_ABS = block_AN.view(len(block_AN), self.rows, self.sequence_len + 1)
        return rows_ABS[..., :-1], rows_ABS[..., 1:]

    def _wide(self, tokens_BT: Tensor) -> Tensor:
        wide = tokens_BT.long()
        return wide.pin_memory() if self.pin else wide

    @property
    def _tokens(self) -> int:
        """Numbers in a micro-batch."""
        length = self.sequence_len + 1 if self.shifted else 2 * self.sequence_len
        return self.rows * length
