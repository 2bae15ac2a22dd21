"""The nanochat run in tests/fixtures: its files, its batches, its numbers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.reference.packing import document_batches, packed_rows
from trainer.data import tokenizer as tokenizers

BASE = Path(__file__).parents[1] / "fixtures" / "nanochat-d4"
TAG = "d4"
ROWS, LENGTH, MICRO_BATCHES = 4, 128, 2

Cursor = tuple[int, int, int]


@lru_cache(maxsize=1)
def reference() -> dict[str, Any]:
    return json.loads((BASE / "reference.json").read_text())


@lru_cache(maxsize=1)
def tokenizer() -> tokenizers.Tokenizer:
    return tokenizers.from_nanochat(BASE / "tokenizer")


def encode(texts: list[str]) -> list[list[int]]:
    tok = tokenizer()
    return [[tok.bos_id, *tok.encode_ordinary(text)] for text in texts]


def micro_batches(
    shards: list[Path], pq_idx: int, rg_idx: int
) -> Iterator[tuple[tuple[Tensor, Tensor], Cursor]]:
    """((tokens, targets), cursor), each (4, 128), forever."""
    rows = packed_rows(document_batches(shards, pq_idx, rg_idx), encode, LENGTH + 1)
    while True:
        taken = [next(rows) for _ in range(ROWS)]
        block = torch.tensor([row for row, _ in taken])
        yield (block[:, :-1].contiguous(), block[:, 1:].contiguous()), taken[-1][1]


def training_batches(pq_idx: int, rg_idx: int) -> Iterator[tuple[tuple[Tensor, Tensor], Cursor]]:
    shards = sorted((BASE / "base_data_climbmix").glob("*.parquet"))[:-1]
    return micro_batches(shards, pq_idx, rg_idx)


def validation_batches(count: int) -> list[tuple[Tensor, Tensor]]:
    shards = sorted((BASE / "base_data_climbmix").glob("*.parquet"))[-1:]
    batches = micro_batches(shards, 0, 0)
    return [next(batches)[0] for _ in range(count)]
