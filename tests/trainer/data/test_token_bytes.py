"""The two tables of byte lengths, and which of them a nanochat folder holds."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from trainer.data import token_bytes
from trainer.data import tokenizer as tokenizers
from trainer.data.errors import DataError

FIXTURES = Path(__file__).parents[2] / "fixtures"


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("nanochat-d4/tokenizer", "raw"),
        ("nanochat-2026-05-d4/tokenizer", "decoded"),
        ("nanochat-2026-09-d4/datasets/stdlib/tokenizer", "raw"),
    ],
)
def test_the_table_of_a_folder_is_known(name: str, kind: token_bytes.TokenBytes) -> None:
    tokenizer = tokenizers.from_nanochat(FIXTURES / name)
    assert token_bytes.read_kind(tokenizer, FIXTURES / name) == kind
    stored = torch.load(FIXTURES / name / "token_bytes.pt", weights_only=True).numpy()
    assert np.array_equal(token_bytes.table(tokenizer, kind), stored)


def test_the_tables_differ_where_a_token_is_no_whole_text() -> None:
    tokenizer = tokenizers.from_nanochat(FIXTURES / "nanochat-d4" / "tokenizer")
    raw, decoded = (token_bytes.table(tokenizer, kind) for kind in ("raw", "decoded"))
    assert (raw != decoded).sum() == 128  # the single bytes that are no ASCII
    assert set(decoded[raw != decoded]) == {3}
    assert raw[-9:].tolist() == decoded[-9:].tolist() == [0] * 9


def test_a_table_that_is_neither_is_refused(tmp_path: Path) -> None:
    shutil.copytree(FIXTURES / "nanochat-2026-05-d4" / "tokenizer", tmp_path / "t")
    lengths = torch.load(tmp_path / "t" / "token_bytes.pt", weights_only=True)
    lengths[70] += 1
    torch.save(lengths, tmp_path / "t" / "token_bytes.pt")
    with pytest.raises(DataError, match="byte lengths are not those") as caught:
        tokenizers.from_nanochat(tmp_path / "t")
    assert "token_bytes.pt" in caught.value.message


def test_either_table_is_written_for_nanochat(tmp_path: Path) -> None:
    tokenizer = tokenizers.from_nanochat(FIXTURES / "nanochat-d4" / "tokenizer")
    for kind in ("raw", "decoded"):
        tokenizers.to_nanochat(tokenizer, tmp_path / kind, kind)
        assert token_bytes.read_kind(tokenizer, tmp_path / kind) == kind
    assert token_bytes.read_kind(tokenizer, tmp_path) is None
