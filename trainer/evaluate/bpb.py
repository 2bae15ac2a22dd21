"""Validation loss in bits per byte, comparable across tokenizers (docs/recipe.md, Evaluation)."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor

from trainer.evaluate.undisturbed import undisturbed
from trainer.model.gpt import GPT
from trainer.runtime.world import World

TokenLosses = Callable[[Tensor, Tensor], Tensor]  # tokens, targets (B, T) -> nats (B, T)


@dataclass(frozen=True)
class BpbResult:
    """value: bits per byte = nats / (ln 2 x bytes), over the `tokens` targets that have bytes."""

    value: float
    nats: float
    bytes: int
    tokens: int
    seconds: float

    def as_result(self) -> dict[str, Any]:
        return asdict(self)

    def per_bytes(self, num_bytes: int) -> BpbResult:
        """The value for the same losses and another byte count of the same tokens."""
        value = self.nats / (math.log(2) * num_bytes)
        return replace(self, value=value, bytes=num_bytes, seconds=0.0)


def measure(
    model: GPT,
    batches: Iterable[tuple[Tensor, Tensor]],
    token_bytes: Tensor,
    *,
    should_stop: Callable[[], bool] | None = None,
    seen: Callable[[Tensor], None] | None = None,
    token_losses: TokenLosses | None = None,
    world: World | None = None,
) -> BpbResult | None:
    """Bits per byte over batches of (inputs_BT, targets_BT); None if stopped.

    token_bytes (vocab_size,): bytes of each token, 0 for special ones, which do not count; neither
    do targets of -1. seen: called with the targets of each batch. token_losses: computes the losses
    instead of the uncompiled `model`. world: ranks that take turns with the batches; the value is
    the same to the last bit. Raises ValueError if no target counts.
    """
    began, world, own = time.monotonic(), world or World(), []
    lengths = torch.as_tensor(token_bytes, device=model.device)
    losses = token_losses or partial(model.loss, reduction="none")
    with undisturbed(model):
        for index, (inputs_BT, targets_BT) in enumerate(batches):
            turn = index % world.size
            if turn == 0 and should_stop is not None and world.any(should_stop()):
                return None
            if seen is not None:
                seen(targets_BT)
            if turn != world.rank:
                continue
            inputs_BT, targets_BT = inputs_BT.to(model.device), targets_BT.to(model.device)
            own.append(_sums(losses(inputs_BT, targets_BT), targets_BT, lengths))
    nats, num_bytes, tokens = _added_in_order(world.all_gather(own))
    if not num_bytes:
        raise ValueError("no target token with bytes in the validation span")
    value = nats / (math.log(2) * num_bytes)
    return BpbResult(value, nats, num_bytes, tokens, time.monotonic() - began)


def plan_span(eval_tokens: int, rows: int, sequence_len: int, streams: int = 1) -> int:
    """Number of batches of rows x sequence_len tokens in the span, equal for each stream, at
    least one."""
    return max(1, eval_tokens // (rows * sequence_len * streams)) * streams


def identity(
    val_identity: str,
    tokenizer_sha256: str,
    *,
    batches: int,
    rows: int,
    sequence_len: int,
    packing: str,
    streams: int = 1,
    token_bytes: str = "raw",
) -> str:
    """Identity of a value: a hash of everything it depends on except the weights.

    It includes rows, since packing depends on where the span ends, after batches x rows rows; the
    streams that pack them; and the table of byte lengths.
    """
    parts: dict[str, Any] = {
        "kind": "bpb",
        "validation": val_identity,
        "tokenizer": tokenizer_sha256,
        "batches": batches,
        "rows": rows,
        "sequence_len": sequence_len,
        "packing": packing,
    }
    if streams != 1:
        parts["streams"] = streams
    if token_bytes != "raw":
        parts["token_bytes"] = token_bytes
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _added_in_order(sums_of_ranks: list[list[Any]]) -> tuple[float, int, int]:
    """The sums of all batches, which ranks took in turns, added in the order of batches."""
    nats, num_bytes, tokens = 0.0, 0, 0
    for turn in zip_longest(*sums_of_ranks):
        for batch in filter(None, turn):
            nats, num_bytes, tokens = nats + batch[0], num_bytes + batch[1], tokens + batch[2]
    return nats, num_bytes, tokens


def _sums(losses_BT: Tensor, targets_BT: Tensor, lengths_V: Tensor) -> tuple[float, int, int]:
    """(nats, bytes, tokens) of the targets that count."""
    bytes_BT = torch.where(targets_BT >= 0, lengths_V[targets_BT.clamp_min(0)], 0)
    counted = bytes_BT > 0
    nats = torch.where(counted, losses_BT, 0.0).sum(dim=1).tolist()  # float32 within a row only
    return math.fsum(nats), int(bytes_BT.sum()), int(counted.sum())
