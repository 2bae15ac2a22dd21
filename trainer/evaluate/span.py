"""val bpb over a run's validation span: the same settings, batches and identity everywhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainer.contract.spec import RunSpec
from trainer.data import packed_rows
from trainer.data import token_bytes as byte_tables
from trainer.data.loader import open_loader
from trainer.data.packing import Packing
from trainer.data.prepared import PreparedData
from trainer.data.token_bytes import TokenBytes
from trainer.data.tokenizer import Tokenizer
from trainer.evaluate import bpb
from trainer.model.gpt import GPT
from trainer.runtime.world import World


@dataclass(frozen=True)
class BpbSettings:
    """Settings of val bpb: span of the validation split, rows, and byte lengths."""

    eval_tokens: int
    rows: int
    sequence_len: int
    packing: Packing = "best_fit"
    streams: int = 1
    token_bytes: TokenBytes = "raw"


@dataclass(frozen=True)
class Measured:
    """A measured value. other: the same losses by the other table of byte lengths."""

    result: bpb.BpbResult
    identity: str
    settings: dict[str, Any]
    other: Measured | None = None


def settings_of(
    spec: RunSpec, *, rows: int, sequence_len: int, eval_tokens: int | None = None
) -> BpbSettings:
    """The settings of a run. rows: per pass. eval_tokens: overrides the spec's span."""
    return BpbSettings(
        eval_tokens=eval_tokens or spec.evaluate.eval_tokens,
        rows=rows,
        sequence_len=sequence_len,
        packing=spec.data.packing,
        streams=spec.data.streams,
        token_bytes=spec.evaluate.token_bytes,
    )


def measure(
    model: GPT,
    data: PreparedData,
    tokenizer: Tokenizer,
    settings: BpbSettings,
    *,
    should_stop: Callable[[], bool] | None = None,
    token_losses: bpb.TokenLosses | None = None,
    world: World | None = None,
) -> Measured | None:
    """val bpb over `eval_tokens` of the validation split, from its beginning."""
    _, by_other = by_both_tables(settings)
    count = _ByteCount(byte_tables.table(tokenizer, by_other.token_bytes))
    result = bpb.measure(
        model,
        _batches(data, settings),
        torch.from_numpy(byte_tables.table(tokenizer, settings.token_bytes).copy()),
        should_stop=should_stop,
        seen=count.add,
        token_losses=token_losses,
        world=world,
    )
    if result is None:
        return None
    other = Measured(
        result.per_bytes(count.bytes), identity(data, by_other), describe(data, by_other)
    )
    return Measured(result, identity(data, settings), describe(data, settings), other)


class _ByteCount:
    """Bytes of all targets seen, by a table of lengths. Special tokens and -1 have none."""

    def __init__(self, lengths_V: np.ndarray) -> None:
        self._lengths_V = torch.from_numpy(lengths_V.astype(np.int64))
        self.bytes = 0

    def add(self, targets_BT: Tensor) -> None:
        counted = targets_BT[targets_BT >= 0].cpu()
        self.bytes += int(self._lengths_V[counted].sum())


def by_both_tables(settings: BpbSettings) -> tuple[BpbSettings, BpbSettings]:
    """These settings, and the same with the other table of byte lengths."""
    return settings, replace(settings, token_bytes=_other(settings.token_bytes))


def _other(kind: TokenBytes) -> TokenBytes:
    return "decoded" if kind == "raw" else "raw"


def describe(data: PreparedData, settings: BpbSettings) -> dict[str, Any]:
    """Everything a value depends on except the weights, field by field (JSON)."""
    return {
        **asdict(settings),
        "batches": _num_batches(settings),
        "validation": data.val_identity(),
        "tokenizer": data.tokenizer_sha256,
    }


def identity(data: PreparedData, settings: BpbSettings) -> str:
    """Identity of a val bpb value: a hash of everything it depends on except the weights."""
    rows, count, packing = settings.rows, _num_batches(settings), settings.packing
    if data.source == packed_rows.SOURCE:  # these rows do not depend on the batch size
        rows, count, packing = count * rows, 1, packed_rows.SOURCE
    return bpb.identity(
        data.val_identity(),
        data.tokenizer_sha256,
        batches=count,
        rows=rows,
        sequence_len=settings.sequence_len,
        packing=packing,
        streams=settings.streams,
        token_bytes=settings.token_bytes,
    )


def _num_batches(settings: BpbSettings) -> int:
    return bpb.plan_span(
        settings.eval_tokens, settings.rows, settings.sequence_len, settings.streams
    )


def _batches(data: PreparedData, settings: BpbSettings) -> Iterator[tuple[Tensor, Tensor]]:
    with open_loader(
        data,
        split="val",
        rows=settings.rows,
        sequence_len=settings.sequence_len,
        packing=settings.packing,
        streams=settings.streams,
    ) as loader:
        for _ in range(_num_batches(settings)):
            tokens_2BT = torch.from_numpy(loader.next_batch().tokens_2BT)
            yield tokens_2BT[0], tokens_2BT[1]
