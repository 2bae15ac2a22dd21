"""Where an imported run's data continues, and corpora that cannot be the ones it read."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from trainer.contract.spec import DataSpec
from trainer.data.cursor import skip_to_row_group
from trainer.data.prepare import prepare
from trainer.data.prepared import PreparedData
from trainer.interop import nanochat_place
from trainer.interop.errors import InteropError
from trainer.interop.nanochat_meta import Cursor, NanochatMeta, read_meta

BASE = Path(__file__).parents[1] / "fixtures" / "nanochat-2026-05-d4-2gpu"
FILES = ("shard_00000.parquet", "shard_00001.parquet", "shard_00002.parquet")


def corpus(tmp_path: Path, names: tuple[str, ...]) -> PreparedData:
    folder = tmp_path / "corpus"
    folder.mkdir()
    for index, name in enumerate(names):
        shutil.copy(BASE / "base_data_climbmix" / FILES[index], folder / name)
    return prepare(
        DataSpec(source="parquet", path=str(folder)),
        data_dir=tmp_path / "data",
        vocab_size=768,
        tokens_needed=0,
        seed_tokenizer_dir=BASE / "tokenizer",
    )


def meta_at(**position: int) -> NanochatMeta:
    path = BASE / "base_checkpoints" / "d4" / "meta_000060.json"
    found, _ = read_meta(path, BASE)
    return found.model_copy(update={"dataloader_state_dict": Cursor(**position)})


def place(
    meta: NanochatMeta, data: PreparedData, was_named: bool = False
) -> nanochat_place.DataPosition:
    return nanochat_place.find(meta, data, packing="best_fit", streams=2, was_named=was_named)


def test_the_whole_corpus(tmp_path: Path) -> None:
    found = place(meta_at(pq_idx=1, rg_idx=14, epoch=1), corpus(tmp_path, FILES))
    assert found.cursor == skip_to_row_group({"pq_idx": 1, "rg_idx": 14, "epoch": 1}, streams=2)
    assert found.doubts == ()


@pytest.mark.parametrize(
    ("position", "words"),
    [
        ({"pq_idx": 2, "rg_idx": 0}, "at file 2, row group 0, and there are 2 files"),
        ({"pq_idx": 1, "rg_idx": 15}, r"and shard_00001\.parquet has 15 row groups"),
    ],
)
def test_a_position_that_is_not_there(tmp_path: Path, position, words: str) -> None:
    data = corpus(tmp_path, FILES)
    with pytest.raises(InteropError, match=words) as caught:
        place(meta_at(**position), data)
    assert "--corpus" in str(caught.value)
    found = place(meta_at(**position), data, was_named=True)
    assert found.cursor["streams"][1]["position"]["row_group"] == 1
    assert "starts from the beginning" in found.doubts[0]


def test_a_shard_missing_between_others_is_doubted(tmp_path: Path) -> None:
    data = corpus(tmp_path, ("shard_00000.parquet", "shard_00002.parquet", "shard_06542.parquet"))
    (doubt,) = place(meta_at(pq_idx=0, rg_idx=3), data).doubts
    assert "shard_00001.parquet is missing between others" in doubt


def test_the_default_data_set_has_its_validation_far_away(tmp_path: Path) -> None:
    """shard_06542 validates, whatever number of train shards was fetched."""
    data = corpus(tmp_path, ("shard_00000.parquet", "shard_00001.parquet", "shard_06542.parquet"))
    assert place(meta_at(pq_idx=0, rg_idx=3), data).doubts == ()


def test_renamed_files_have_no_numbers_to_miss(tmp_path: Path) -> None:
    data = corpus(tmp_path, ("a.parquet", "b.parquet", "c.parquet"))
    assert place(meta_at(pq_idx=0, rg_idx=3), data).doubts == ()
