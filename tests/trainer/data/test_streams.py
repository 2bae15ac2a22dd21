"""Several streams packed separately, as the processes of a nanochat run pack them."""

from __future__ import annotations

import json
import random
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.trainer.data import plain
from tests.trainer.data.conftest import random_texts
from trainer.contract.spec import DataSpec
from trainer.data import tokenizer as tokenizers
from trainer.data.errors import DataError
from trainer.data.loader import nanochat_position, open_loader, skip_to_row_group
from trainer.data.prepare import prepare
from trainer.data.prepared import PreparedData

TWO_PROCESSES = Path(__file__).parents[2] / "fixtures" / "nanochat-2026-05-d4-2gpu"


@pytest.fixture
def corpus(small_corpus) -> PreparedData:
    """Files of 3, 1, 5 and 2 row groups: stream 1 of 3 finds nothing in the second one."""
    source = random.Random(5)
    files = [[57, 200, 131], [40], [90, 10, 80, 33, 120], [300, 10]]
    return small_corpus([[random_texts(source, n) for n in groups] for groups in files])


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    return prepare(
        DataSpec(source="parquet", path=str(TWO_PROCESSES / "base_data_climbmix")),
        data_dir=tmp_path_factory.mktemp("two"),
        vocab_size=768,
        tokens_needed=0,
        seed_tokenizer_dir=TWO_PROCESSES / "tokenizer",
    )


def plain_stream(data: PreparedData, split: str, rank: int, world: int, slots: int):
    """Rows of one stream by the plain version, from the text."""
    tokenizer = tokenizers.load(data.tokenizer_dir)
    files = []
    for file in data.files(split):
        shard = pq.ParquetFile(file.path)
        groups = [shard.read_row_group(g)["text"].to_pylist() for g in range(shard.num_row_groups)]
        files.append(
            [[[tokenizer.bos_id, *tokenizer.encode_ordinary(t)] for t in g] for g in groups]
        )
    return plain.packed_rows(plain.document_batches(files, rank, world), slots)


@pytest.mark.parametrize(("split", "streams"), [("train", 2), ("train", 3), ("val", 2)])
def test_every_stream_is_the_plain_one(corpus, streams: int, split) -> None:
    rows = []
    with open_loader(corpus, split=split, rows=4, sequence_len=64, streams=streams) as loader:
        for _ in range(60):
            rows.extend(loader.next_batch().inputs_BT)
    for stream in range(streams):
        expected = plain_stream(corpus, split, stream, streams, 65)
        found = np.array(rows[stream::streams])
        assert np.array_equal(found, [row[:-1] for row, _ in islice(expected, len(found))])


@pytest.mark.parametrize(
    ("streams", "words"),
    [(3, "to validate on have at most 2 row groups"), (6, "to train on have at most 5")],
)
def test_more_streams_than_row_groups_are_refused_before_training(corpus, tmp_path, streams, words):
    folder = Path(corpus.train_files[0].path).parent
    with pytest.raises(DataError, match=words) as caught:
        prepare(
            DataSpec(source="parquet", path=str(folder), streams=streams),
            data_dir=tmp_path / "data",
            vocab_size=768,
            tokens_needed=0,
            seed_tokenizer_dir=TWO_PROCESSES / "tokenizer",
        )
    assert caught.value.code == "too_few_row_groups"


def test_one_stream_is_what_it_always_was(corpus) -> None:
    settings = {"split": "train", "rows": 3, "sequence_len": 64}
    with (
        open_loader(corpus, **settings) as loader,
        open_loader(corpus, streams=1, **settings) as other,
    ):
        for _ in range(20):
            one, two = loader.next_batch(), other.next_batch()
            assert one.sha256 == two.sha256
            assert one.cursor == two.cursor
            assert one.cursor["version"] == 1


@pytest.mark.parametrize("packing", ["best_fit", "lossless"])
@pytest.mark.parametrize("rows", [1, 3, 4])
def test_resume_at_any_batch(corpus, packing, rows: int) -> None:
    """Between the streams' turns too: 3 rows of 2 streams end in the middle of a round."""
    settings = {
        "split": "train", "rows": rows, "sequence_len": 64, "packing": packing, "streams": 2,
    }  # fmt: skip
    with open_loader(corpus, **settings) as loader:
        states, expected = [loader.state_dict()], []
        for _ in range(120):
            expected.append(loader.next_batch().sha256)
            states.append(loader.state_dict())
    for number in (0, 1, 2, 17, 44, 45, 90, 110):
        state = json.loads(json.dumps(states[number]))
        with open_loader(corpus, cursor=state, prefetch=0, **settings) as again:
            assert [again.next_batch().sha256 for _ in range(8)] == expected[number : number + 8]


def test_a_step_takes_the_same_rows_however_many_make_a_micro_batch(corpus) -> None:
    steps = []
    for rows in (1, 2, 4, 8):
        with open_loader(corpus, split="train", rows=rows, sequence_len=64, streams=2) as loader:
            batches = [loader.next_batch().inputs_BT for _ in range(3 * 8 // rows)]
        steps.append(np.concatenate(batches))
    assert all(np.array_equal(steps[0], step) for step in steps[1:])


def test_text_tokenized_as_it_is_read_makes_no_difference(corpus) -> None:
    settings = {"split": "train", "rows": 4, "sequence_len": 64, "streams": 2}
    with open_loader(corpus, **settings) as loader:
        expected = [loader.next_batch().sha256 for _ in range(40)]
    bare = corpus.model_copy(update={"cache_dir": corpus.cache_dir + "-none", "cache_cap_bytes": 1})
    with open_loader(bare, **settings) as loader:
        assert [loader.next_batch().sha256 for _ in range(40)] == expected


def test_a_cursor_of_another_number_of_streams_is_refused(corpus) -> None:
    settings = {"split": "train", "rows": 2, "sequence_len": 64}
    for made, read in [(2, 1), (1, 2), (2, 3)]:
        with open_loader(corpus, streams=made, **settings) as loader:
            state = loader.next_batch().cursor
        with pytest.raises(DataError, match=rf"of {made} streams, and data\.streams is {read}"):
            open_loader(corpus, streams=read, cursor=state, **settings)


@pytest.mark.parametrize(
    ("position", "streams", "expected"),
    [
        ((0, 0, 1), 2, [(0, 2, 0), (0, 3, 0)]),
        ((0, 2, 1), 2, [(0, 4, 0), (0, 5, 0)]),
        ((0, 14, 1), 2, [(1, 0, 0), (1, 1, 0)]),  # 15 row groups: 16 and 17 are not there
        ((0, 12, 1), 2, [(0, 14, 0), (1, 1, 0)]),  # the second stream has none left
        ((1, 12, 2), 2, [(1, 14, 1), (0, 1, 2)]),  # and the last file is the last one
        ((0, 12, 1), 4, [(1, 0, 0), (1, 1, 0), (1, 2, 0), (1, 3, 0)]),
    ],
)
def test_the_resume_rule_of_several_processes(
    two_processes: PreparedData, position, streams: int, expected
) -> None:
    """Where each stream reads first: (file, row group, epoch from 0)."""
    named: dict[str, int] = dict(zip(("pq_idx", "rg_idx", "epoch"), position, strict=True))
    cursor = skip_to_row_group(named, streams=streams)
    with open_loader(
        two_processes, split="train", rows=streams, sequence_len=128, streams=streams,
        cursor=cursor, prefetch=0,
    ) as loader:  # fmt: skip
        parts = loader.next_batch().cursor["streams"]
    found = []
    for part in parts:
        epoch, file, documents = part["buffer"][0]
        found.append((file, documents[0] // 200, epoch))
    assert found == expected


def test_cursors_of_a_run_of_two_processes(two_processes: PreparedData) -> None:
    """From the cursor of its step 60, 60 steps of one micro-batch each on, stands that of 120."""

    def position(step: int) -> dict[str, int]:
        meta = TWO_PROCESSES / "base_checkpoints" / "d4" / f"meta_{step:06d}.json"
        return json.loads(meta.read_text())["dataloader_state_dict"]

    cursor = skip_to_row_group(position(60), streams=2)
    with open_loader(
        two_processes, split="train", rows=4, sequence_len=128, streams=2, cursor=cursor
    ) as loader:
        for _ in range(60 * 2):
            loader.next_batch()
        ours = loader.state_dict()
    assert nanochat_position(two_processes, ours, rows=4, sequence_len=128, streams=2) == position(
        120
    )
