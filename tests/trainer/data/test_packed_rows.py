"""Rows that nanochat packed: the files, the cursor, and what is refused."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
import struct
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.reference import packer_2026_09 as packer
from trainer.contract.spec import DataSpec, TokenizerSpec
from trainer.data import packed_corpus, packed_rows
from trainer.data import tokenizer as tokenizers
from trainer.data.errors import DataChanged, DataError
from trainer.data.loader import open_loader
from trainer.data.packed_rows import cursor_at
from trainer.data.prepare import prepare, verify
from trainer.data.prepared import PreparedData

FIXTURE = Path(__file__).parents[2] / "fixtures" / "nanochat-2026-09-d4"
DATASET = FIXTURE / "datasets" / "stdlib"
ROWS = 1455  # of its two train shards, 781 and 674


def prepared(path: Path, data_dir: Path, **options) -> PreparedData:
    spec = DataSpec(source="nanochat_packed", path=str(path), **options)
    return prepare(spec, data_dir=data_dir, vocab_size=768, tokens_needed=0)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    return prepared(DATASET, tmp_path_factory.mktemp("packed"))


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A data set of one's own, to spoil."""
    target = tmp_path / "dataset"
    shutil.copytree(DATASET, target, ignore=shutil.ignore_patterns("*.parquet"))
    return target


def all_rows() -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets of all train rows, read with numpy alone."""
    parts = []
    for name in ("train_00000.bin", "train_00001.bin"):
        ids = np.fromfile(DATASET / name, dtype="<u2", offset=256)
        parts.append(ids.reshape(2, -1, 128))
    whole = np.concatenate(parts, axis=1).astype(np.int64)
    return whole[0], whole[1]


# --- the packer of the description makes these very files ----------------------------------------


@pytest.mark.parametrize(
    ("parquet", "shard"),
    [
        ("shard_00000.parquet", "train_00000.bin"),
        ("shard_00001.parquet", "train_00001.bin"),
        ("shard_00002.parquet", "val_00000.bin"),
    ],
)
def test_the_fixtures_shards_made_again(parquet: str, shard: str) -> None:
    tokenizer = tokenizers.from_nanochat(DATASET / "tokenizer")
    texts = pq.read_table(DATASET / parquet)["text"].to_pylist()
    documents = [ids.tolist() for ids in tokenizer.encode_batch(texts, bos=True, threads=1)]
    rows = packer.pack(documents, 128)
    made = packer.shard_bytes(rows, 768, tokenizers.nanochat_id(DATASET / "tokenizer"))
    assert made == (DATASET / shard).read_bytes()


# --- batches and cursor --------------------------------------------------------------------------


def test_headers_are_those_of_the_reference() -> None:
    reference = json.loads((FIXTURE / "reference.json").read_text())
    for name, known in reference["shards"].items():
        header = packed_rows.read_header(DATASET / name)
        found = [header.row_len, header.num_rows, header.vocab_size, header.tokenizer_id]
        assert found == known["header"][2:]


def test_a_batch_at_a_row_is_the_rows_from_there(packed: PreparedData) -> None:
    """Over the edge between shards (row 781) and over the end (row 1,455), inside a batch."""
    inputs, targets = all_rows()
    for row in (0, 779, 960, 1452, 5 * ROWS + 17):
        with open_loader(
            packed, split="train", rows=8, sequence_len=128, cursor=cursor_at(row), prefetch=0
        ) as loader:
            batch = loader.next_batch()
        wanted = [(row + i) % ROWS for i in range(8)]
        assert np.array_equal(batch.inputs_BT, inputs[wanted])
        assert np.array_equal(batch.targets_BT, targets[wanted])
        assert batch.cursor == cursor_at(row + 8)


def test_only_the_first_columns_are_used(packed: PreparedData) -> None:
    inputs, targets = all_rows()
    with open_loader(packed, split="train", rows=4, sequence_len=100) as loader:
        batch = loader.next_batch()
    assert np.array_equal(batch.inputs_BT, inputs[:4, :100])
    assert np.array_equal(batch.targets_BT, targets[:4, :100])


@pytest.mark.parametrize("prefetch", [0, 8])
def test_resume_at_any_batch(packed: PreparedData, prefetch: int) -> None:
    settings = {"split": "train", "rows": 12, "sequence_len": 128, "prefetch": prefetch}
    with open_loader(packed, **settings) as loader:
        states, expected = [loader.state_dict()], []
        for _ in range(130):
            expected.append(loader.next_batch().sha256)
            states.append(loader.state_dict())
    assert states[60] == cursor_at(720)
    for number in (0, 1, 64, 65, 120, 121):
        with open_loader(
            packed, cursor=json.loads(json.dumps(states[number])), **settings
        ) as again:
            found = [again.next_batch().sha256 for _ in range(8)]
        assert found == expected[number : number + 8]


def test_a_step_sees_the_same_rows_at_any_micro_batch_and_any_number_of_processes(
    packed: PreparedData,
) -> None:
    def rows(micro: int, ranks: int) -> list[tuple[int, ...]]:
        seen: list[tuple[int, ...]] = []
        for rank in range(ranks):
            with open_loader(
                packed, split="train", rows=micro, sequence_len=128, rank=rank, world=ranks,
                cursor=cursor_at(1448),
            ) as loader:  # fmt: skip
                for _ in range(16 // (micro * ranks)):
                    seen.extend(map(tuple, loader.next_batch().inputs_BT.tolist()))
                assert loader.state_dict()["row"] == 1464
        return sorted(seen)

    assert rows(16, 1) == rows(4, 1) == rows(4, 2) == rows(1, 4)


def test_num_shards_takes_the_first_train_shards_and_all_of_validation(tmp_path: Path) -> None:
    one = prepared(DATASET, tmp_path, num_shards=1)
    assert [Path(f.path).name for f in one.train_files] == ["train_00000.bin"]
    assert [Path(f.path).name for f in one.val_files] == ["val_00000.bin"]
    assert one.corpus_tokens == 781 * 128
    inputs, _ = all_rows()
    with open_loader(
        one, split="train", rows=4, sequence_len=128, cursor=cursor_at(779), prefetch=0
    ) as loader:
        assert np.array_equal(loader.next_batch().inputs_BT, inputs[[779, 780, 0, 1]])


def test_more_num_shards_than_there_are_is_noted(tmp_path: Path) -> None:
    found = prepared(DATASET, tmp_path, num_shards=300)
    assert len(found.train_files) == 2
    assert "num_shards is 300" in found.notes[0]


def test_a_target_of_65535_does_not_count(copied: Path, tmp_path: Path) -> None:
    path = copied / "train_00000.bin"
    content = bytearray(path.read_bytes())
    at = 256 + 2 * 128 * 781 + 2 * (128 * 3 + 5)  # the target of row 3, column 5
    content[at : at + 2] = b"\xff\xff"
    path.write_bytes(content)
    _, targets = all_rows()
    with open_loader(prepared(copied, tmp_path), split="train", rows=8, sequence_len=128) as loader:
        found = loader.next_batch().targets_BT
    assert found[3, 5] == -1
    assert (found != targets[:8]).sum() == 1


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts open files in /proc")
def test_few_files_are_open_at_a_time(packed: PreparedData, monkeypatch) -> None:
    monkeypatch.setattr(packed_rows, "OPEN_FILES", 1)
    settings = {"split": "train", "rows": 8, "sequence_len": 128, "prefetch": 0}
    descriptors = len(os.listdir("/proc/self/fd"))
    with open_loader(packed, cursor=cursor_at(777), **settings) as loader:
        first = loader.next_batch().inputs_BT  # of both files
        assert len(os.listdir("/proc/self/fd")) == descriptors + 1
        loader.load_state_dict(cursor_at(777))
        assert np.array_equal(loader.next_batch().inputs_BT, first)
    assert len(os.listdir("/proc/self/fd")) == descriptors


# --- what is refused -----------------------------------------------------------------------------


def edited(path: Path, field: int, value: int) -> None:
    content = bytearray(path.read_bytes())
    struct.pack_into("<i", content, 4 * field, value)
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        (0, 1, "does not begin as nanochat's packed shards do"),
        (1, 2, "format version is 2"),
        (2, 2**31 - 1, "rows of 2,147,483,647 tokens"),
        (2, 0, "rows of 0 tokens"),
        (2, -128, "rows of -128 tokens"),
        (3, 2**31 - 1, r"cut short: 2,147,483,647 rows of 128 tokens take 1,099,511,627,520 bytes"),
        (3, 0, "names 0 rows"),
        (3, 780, "too long"),
        (4, 65_535, "vocabulary of 65,535 tokens"),
        (4, -1, "vocabulary of -1 tokens"),
        (5, -5, "numbers where zeros belong"),
        (63, 7, "numbers where zeros belong"),
    ],
)
def test_an_absurd_header_is_refused(copied: Path, tmp_path: Path, field, value, words) -> None:
    edited(copied / "train_00000.bin", field, value)
    with pytest.raises(DataError, match=words) as caught:
        prepared(copied, tmp_path)
    assert "train_00000.bin" in caught.value.message
    assert caught.value.code == "corrupt_shard"


@pytest.mark.parametrize("size", [0, 100, 256, 300_000])
def test_a_truncated_shard_is_refused(copied: Path, tmp_path: Path, size: int) -> None:
    os.truncate(copied / "train_00001.bin", size)
    with pytest.raises(DataError, match=r"train_00001\.bin") as caught:
        prepared(copied, tmp_path)
    assert caught.value.code == "corrupt_shard"


@pytest.mark.parametrize(
    ("field", "value", "words"), [(4, 700, "vocabulary of 700"), (5, 5, "the tokenizer 5")]
)
def test_shards_of_two_packings_are_refused(copied: Path, tmp_path: Path, field, value, words):
    edited(copied / "train_00001.bin", field, value)
    with pytest.raises(DataError, match=words) as caught:
        prepared(copied, tmp_path)
    assert caught.value.code == "mixed_shards"
    assert "train_00001.bin" in caught.value.message


def test_a_shard_missing_between_others_is_refused(copied: Path, tmp_path: Path) -> None:
    (copied / "train_00000.bin").unlink()
    with pytest.raises(DataError, match=r"train_00000\.bin is missing, while train_00001\.bin"):
        prepared(copied, tmp_path)


def test_no_validation_shard(copied: Path, tmp_path: Path) -> None:
    (copied / "val_00000.bin").unlink()
    with pytest.raises(DataError, match="holds no val_00000"):
        prepared(copied, tmp_path)


def test_the_tokenizer_of_other_shards_is_refused(copied: Path, tmp_path: Path) -> None:
    """The same tokenizer in another pickle has another id, which nanochat refuses too."""
    tokenizer = tokenizers.from_nanochat(DATASET / "tokenizer")
    other_pickle = pickle.dumps(tokenizer.encoding, protocol=5)
    (copied / "tokenizer" / "tokenizer.pkl").write_bytes(other_pickle)
    assert tokenizers.nanochat_id(copied / "tokenizer") != 758473432
    with pytest.raises(DataError, match="packed by the tokenizer 758473432") as caught:
        prepared(copied, tmp_path)
    assert caught.value.code == "tokenizer_mismatch"


def test_the_pickle_the_shards_belong_to_is_kept(packed: PreparedData) -> None:
    assert packed.tokenizer_id == 758473432
    kept = packed_corpus.nanochat_pickle(packed.tokenizer_dir, 758473432)
    assert kept.read_bytes() == (DATASET / "tokenizer" / "tokenizer.pkl").read_bytes()


def test_shards_without_their_tokenizer_beside_them(copied: Path, tmp_path: Path) -> None:
    """Moved elsewhere they are known again by the copy that was kept."""
    first = prepared(copied, tmp_path / "data")
    shutil.rmtree(copied / "tokenizer")
    spec = DataSpec(
        source="nanochat_packed",
        path=str(copied),
        tokenizer=TokenizerSpec(path=first.tokenizer_dir),
    )
    again = prepare(spec, data_dir=tmp_path / "data", vocab_size=768, tokens_needed=0)
    assert again.identity() == first.identity()


def test_rows_shorter_than_the_sequence(packed: PreparedData) -> None:
    with pytest.raises(DataError, match=r"have 128 tokens and model\.sequence_len is 256"):
        open_loader(packed, split="train", rows=1, sequence_len=256)


def test_rows_shorter_than_the_sequence_are_refused_when_the_data_is_prepared(tmp_path) -> None:
    spec = DataSpec(source="nanochat_packed", path=str(DATASET))
    with pytest.raises(DataError, match=r"set it to at most 128") as caught:
        prepare(spec, data_dir=tmp_path, vocab_size=768, tokens_needed=0, sequence_len=129)
    assert caught.value.code == "rows_too_short"


def test_a_token_id_beyond_the_vocabulary(copied: Path, tmp_path: Path) -> None:
    path = copied / "train_00000.bin"
    content = bytearray(path.read_bytes())
    content[256 + 2 * 128 * 2 : 256 + 2 * 128 * 2 + 2] = struct.pack("<H", 768)
    path.write_bytes(content)
    with open_loader(prepared(copied, tmp_path), split="train", rows=2, sequence_len=64) as loader:
        loader.next_batch()
        with pytest.raises(DataError, match=r"row 2 of .*train_00000\.bin holds the token id 768"):
            loader.next_batch()


def test_a_shard_that_changes_while_it_is_read(copied: Path, tmp_path: Path) -> None:
    data = prepared(copied, tmp_path)
    with open_loader(data, split="train", rows=2, sequence_len=64, prefetch=0) as loader:
        loader.next_batch()
        with (copied / "train_00000.bin").open("r+b") as file:
            file.seek(1000)
            file.write(b"\0\0")
        with pytest.raises(DataChanged, match=r"train_00000\.bin"):
            loader.next_batch()
    with pytest.raises(DataChanged, match=r"train_00000\.bin"):
        verify(data)


@pytest.mark.parametrize(
    "cursor", [{"version": 1, "packing": "best_fit", "row": 1}, cursor_at(0) | {"version": 2}]
)
def test_a_foreign_cursor_is_refused(packed: PreparedData, cursor) -> None:
    with pytest.raises(DataError, match="packed shards"):
        open_loader(packed, split="train", rows=1, sequence_len=64, cursor=cursor)


def test_identities_depend_on_the_shards_used(packed: PreparedData, tmp_path: Path) -> None:
    one = prepared(DATASET, tmp_path, num_shards=1)
    assert one.identity() != packed.identity()
    assert one.val_identity() == packed.val_identity()
    names = [hashlib.sha256((DATASET / n).read_bytes()).hexdigest() for n in ("train_00000.bin",)]
    assert [f.sha256 for f in one.train_files] == names
