"""val bpb on a run's validation span: the same settings, batches and identity everywhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trainer.data.loader import open_loader
from trainer.data.packing import Packing
from trainer.data.prepared import PreparedData
from trainer.data.tokenizer import Tokenizer
from trainer.evaluate import bpb
from trainer.model.gpt import GPT


@dataclass(frozen=True)
class Measured:
    result: bpb.BpbResult
    identity: str
    settings: dict[str, Any]


def measure(
    model: GPT,
    data: PreparedData,
    tokenizer: Tokenizer,
    *,
    eval_tokens: int,
    rows: int,
    sequence_len: int,
    packing: Packing,
    should_stop: Callable[[], bool] | None = None,
) -> Measured | None:
    """val bpb over `eval_tokens` of the validation split, packed from its beginning."""
    count = bpb.plan_span(eval_tokens, rows, sequence_len)
    result = bpb.measure(
        model,
        _batches(data, rows, sequence_len, packing, count),
        torch.from_numpy(tokenizer.token_bytes.copy()),
        should_stop=should_stop,
    )
    if result is None:
        return None
    settings = {
        "eval_tokens": eval_tokens,
        "batches": count,
        "rows": rows,
        "sequence_len": sequence_len,
        "packing": packing,
        "validation": data.val_identity(),
        "tokenizer": data.tokenizer_sha256,
    }
    name = identity(
        data, eval_tokens=eval_tokens, rows=rows, sequence_len=sequence_len, packing=packing
    )
    return Measured(result, name, settings)


def identity(
    data: PreparedData, *, eval_tokens: int, rows: int, sequence_len: int, packing: Packing
) -> str:
    """What such a value depends on besides the weights."""
    return bpb.identity(
        data.val_identity(), data.tokenizer_sha256, eval_tokens, rows, sequence_len, packing
    )


def _batches(
    data: PreparedData, rows: int, sequence_len: int, packing: Packing, count: int
) -> Iterator[tuple[Tensor, Tensor]]:
    with open_loader(
        data, split="val", rows=rows, sequence_len=sequence_len, packing=packing
    ) as loader:
        for _ in range(count):
            tokens_2BT = torch.from_numpy(loader.next_batch().tokens_2BT)
            yield tokens_2BT[0], tokens_2BT[1]
