"""The cursor is exact: from any batch on, the same batches come again."""

from __future__ import annotations

import itertools
import json
import random

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.trainer.data import plain
from tests.trainer.data.conftest import random_texts
from trainer.data import cache
from trainer.data import tokenizer as tokenizers
from trainer.data.errors import DataError
from trainer.data.loader import nanochat_position, open_loader, skip_to_row_group
from trainer.data.prepared import PreparedData

FILES = [[57, 200, 131], [40], [300, 10]]  # documents by row group; the last is validation


@pytest.fixture
def corpus(small_corpus) -> PreparedData:
    source = random.Random(5)
    return small_corpus([[random_texts(source, n) for n in groups] for groups in FILES])


def digests(prepared: PreparedData, number: int, **settings) -> list[str]:
    with open_loader(prepared, **settings) as loader:
        return [loader.next_batch().sha256 for _ in range(number)]


def test_batches_are_the_plain_rows(nanochat: PreparedData, fixture_dir) -> None:
    """Inputs and targets of the fixture's first batches, made from text by the plain version."""
    tokenizer = tokenizers.load(nanochat.tokenizer_dir)
    files = []
    for file in nanochat.train_files:
        shard = pq.ParquetFile(file.path)
        groups = [shard.read_row_group(g)["text"].to_pylist() for g in range(15)]
        files.append(
            [[[tokenizer.bos_id, *tokenizer.encode_ordinary(t)] for t in g] for g in groups]
        )
    expected = plain.packed_rows(plain.document_batches(files), 129)
    with open_loader(nanochat, split="train", rows=4, sequence_len=128) as loader:
        for _ in range(10):
            batch = loader.next_batch()
            rows = np.array([next(expected)[0] for _ in range(4)])
            assert np.array_equal(batch.inputs_BT, rows[:, :-1])
            assert np.array_equal(batch.targets_BT, rows[:, 1:])
            assert batch.inputs_BT.dtype == np.int64


@pytest.mark.parametrize("packing", ["best_fit", "lossless"])
@pytest.mark.parametrize(("rank", "world"), [(0, 1), (0, 2)])
@pytest.mark.parametrize("prefetch", [0, 8])
def test_f39_resume_at_any_batch(corpus, packing, rank, world, prefetch) -> None:
    settings = {
        "split": "train",
        "rows": 3,
        "sequence_len": 64,
        "packing": packing,
        "rank": rank,
        "world": world,
        "prefetch": prefetch,
    }
    with open_loader(corpus, **settings) as loader:
        states, expected = [loader.state_dict()], []
        for _ in range(120):
            expected.append(loader.next_batch().sha256)
            states.append(loader.state_dict())
    assert states[-1]["position"]["epoch"] >= 2  # over shards and epochs
    for number in (0, 1, 2, 17, 44, 45, 90, 110):
        state = json.loads(json.dumps(states[number]))
        again = digests(corpus, 10, cursor=state, **settings)
        assert again == expected[number : number + 10]


@pytest.mark.parametrize("packing", ["best_fit", "lossless"])
def test_f39_every_single_batch(corpus, packing) -> None:
    """Batch by batch, each from the cursor of the one before, equals going straight on."""
    settings = {"split": "train", "rows": 2, "sequence_len": 200, "packing": packing}
    expected = digests(corpus, 25, **settings)
    cursor = None
    for wanted in expected:
        with open_loader(corpus, cursor=cursor, prefetch=0, **settings) as loader:
            batch = loader.next_batch()
        assert batch.sha256 == wanted
        cursor = batch.cursor


def test_cursor_belongs_to_the_batch_taken(corpus) -> None:
    """However much is fetched ahead, the state is the same."""
    states = []
    for prefetch in (0, 1, 16):
        with open_loader(
            corpus, split="train", rows=2, sequence_len=64, prefetch=prefetch
        ) as loader:
            batches = [loader.next_batch() for _ in range(7)]
            assert loader.state_dict() == batches[-1].cursor
            states.append(loader.state_dict())
    assert states[0] == states[1] == states[2]


def test_load_state_dict_goes_back(corpus) -> None:
    with open_loader(corpus, split="train", rows=2, sequence_len=64) as loader:
        loader.next_batch()
        state = loader.state_dict()
        expected = [loader.next_batch().sha256 for _ in range(5)]
        loader.load_state_dict(state)
        assert loader.state_dict() == state
        assert [loader.next_batch().sha256 for _ in range(5)] == expected


def test_another_number_of_rows_continues_the_same_rows(corpus) -> None:
    """Rows fill one after another, so the rows per batch may change at a resume."""
    with open_loader(corpus, split="train", rows=4, sequence_len=64) as loader:
        loader.next_batch()
        state, batch = loader.state_dict(), loader.next_batch()
    with open_loader(corpus, split="train", rows=2, sequence_len=64, cursor=state) as loader:
        halves = [loader.next_batch().inputs_BT for _ in range(2)]
    assert np.array_equal(np.concatenate(halves), batch.inputs_BT)


def test_cached_or_tokenized_now_makes_no_difference(corpus, small_corpus) -> None:
    settings = {"split": "train", "rows": 3, "sequence_len": 64}
    expected = digests(corpus, 80, **settings)
    with open_loader(corpus, **settings) as loader:
        state = [loader.next_batch().cursor for _ in range(30)][-1]
    bare = corpus.model_copy(update={"cache_dir": corpus.cache_dir + "-none", "cache_cap_bytes": 1})
    assert digests(bare, 80, **settings) == expected
    assert digests(bare, 50, cursor=state, **settings) == expected[30:]


def test_a_damaged_cache_is_not_believed(corpus) -> None:
    settings = {"split": "train", "rows": 3, "sequence_len": 64}
    expected = digests(corpus, 20, **settings)
    path = cache.cache_path(corpus.cache_dir, corpus.train_files[0].sha256)
    content = bytearray(path.read_bytes())
    content[5000] ^= 1
    path.write_bytes(content)
    assert digests(corpus, 20, **settings) == expected


def test_the_batch_that_fails_comes_after_the_good_ones(corpus) -> None:
    """What the thread meets while fetching ahead is raised at its own batch, and again after."""
    from trainer.data.errors import DataChanged

    settings = {"split": "train", "rows": 2, "sequence_len": 64, "prefetch": 4}
    expected = digests(corpus, 200, **settings)
    path = corpus.train_files[1].path
    with open_loader(corpus, **settings) as loader:
        with open(path, "ab") as file:
            file.write(b"x")
        seen: list[str] = []
        with pytest.raises(DataChanged, match="shard_001"):
            seen.extend(batch.sha256 for batch in loader)
        with pytest.raises(DataChanged):
            loader.next_batch()
    assert expected[: len(seen)] == seen


def test_val_begins_anew_each_time(corpus) -> None:
    settings = {"split": "val", "rows": 2, "sequence_len": 64}
    assert digests(corpus, 5, **settings) == digests(corpus, 5, **settings)


def test_ranks_read_different_row_groups(corpus) -> None:
    settings = {"split": "train", "rows": 2, "sequence_len": 64, "world": 2}
    assert digests(corpus, 5, rank=0, **settings) != digests(corpus, 5, rank=1, **settings)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"packing": "lossless"}, "packing"),
        ({"world": 2}, "processes"),
        ({"version": 9}, "version"),
        ({"position": {"epoch": 0, "file": 7, "row_group": 0, "document": 0}}, "file 7"),
    ],
)
def test_a_foreign_cursor_is_refused(corpus, change, words) -> None:
    with open_loader(corpus, split="train", rows=2, sequence_len=64) as loader:
        state = {**loader.next_batch().cursor, **change}
    with pytest.raises(DataError, match=words):
        open_loader(corpus, split="train", rows=2, sequence_len=64, cursor=state)


def test_nanochats_cursor_there_and_back(nanochat: PreparedData, fixture_dir) -> None:
    """From the cursor of its step 60, 60 steps of two micro-batches on, stands that of 120."""

    def position(step: int) -> dict[str, int]:
        meta = fixture_dir / "base_checkpoints" / "d4" / f"meta_{step:06d}.json"
        return json.loads(meta.read_text())["dataloader_state_dict"]

    cursor = skip_to_row_group(position(60))
    with open_loader(nanochat, split="train", rows=4, sequence_len=128, cursor=cursor) as loader:
        for _ in range(60 * 2):
            loader.next_batch()
        ours = loader.state_dict()
    assert nanochat_position(nanochat, ours, rows=4, sequence_len=128) == position(120)


def test_skip_goes_to_the_next_shard_and_the_next_epoch(nanochat: PreparedData) -> None:
    """After a shard's last row group comes the next shard, after the last shard epoch 2."""
    for position, expected in [
        ({"pq_idx": 0, "rg_idx": 14, "epoch": 1}, (1, 0, 1)),
        ({"pq_idx": 1, "rg_idx": 14, "epoch": 1}, (0, 0, 2)),
        ({"pq_idx": 0, "rg_idx": 3, "epoch": 2}, (0, 4, 2)),
    ]:
        with open_loader(
            nanochat,
            split="train",
            rows=1,
            sequence_len=128,
            cursor=skip_to_row_group(position),
            prefetch=0,
        ) as loader:
            first = loader.next_batch().cursor["buffer"][0]
        epoch, file, documents = first
        assert (file, documents[0] // 200, epoch + 1) == expected


def test_a_cursor_is_small(nanochat: PreparedData) -> None:
    with open_loader(nanochat, split="train", rows=4, sequence_len=128) as loader:
        for batch in itertools.islice(loader, 50):
            assert len(json.dumps(batch.cursor)) < 10_000
