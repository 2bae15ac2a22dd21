"""The fast packing gives the rows of the plain one, whatever the documents look like."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.trainer.data import plain
from trainer.data.packing import Packer
from trainer.data.reader import DocumentReader, Position

# lengths that meet every case: empty texts (1 token), equals, longer than the longest row
LENGTHS = st.one_of(st.integers(1, 6), st.integers(1, 40), st.just(17))
FILES = st.lists(
    st.lists(st.lists(LENGTHS, min_size=0, max_size=300), min_size=1, max_size=4),
    min_size=1,
    max_size=3,
).filter(lambda files: any(group for file in files for group in file))


class ListShard:
    """A shard held in lists, for the reader."""

    def __init__(self, groups: list[list[list[int]]]) -> None:
        self._groups = groups
        self._starts = [0, *itertools.accumulate(len(group) for group in groups)]

    @property
    def num_row_groups(self) -> int:
        return len(self._groups)

    def span(self, row_group: int) -> tuple[int, int]:
        return self._starts[row_group], self._starts[row_group + 1]

    def documents(self, row_group: int, first: int, last: int) -> list[np.ndarray]:
        start = self._starts[row_group]
        chosen = self._groups[row_group][first - start : last - start]
        return [np.array(document, dtype=np.uint16) for document in chosen]

    def pick(self, documents):
        raise NotImplementedError("the packer never goes back")


def with_tokens(files: list[list[list[int]]]) -> list[list[list[list[int]]]]:
    """Lengths become documents whose tokens are all different, so that no swap goes unseen."""
    counter = itertools.count()
    return [
        [[[next(counter) % 60_000 for _ in range(n)] for n in group] for group in groups]
        for groups in files
    ]


def compare(files: list, row_slots: int, lossless: bool, rank: int, world: int, rows: int) -> None:
    shards = [ListShard(groups) for groups in files]
    reader = DocumentReader(shards.__getitem__, len(shards), None, None, rank, world)
    if not any(group for groups in files for group in groups[rank::world]):
        return  # nothing for this rank
    reader.position = Position(row_group=rank)
    packer = Packer(reader.read, "lossless" if lossless else "best_fit")
    expected = plain.packed_rows(
        plain.document_batches(files, rank, world), row_slots, lossless=lossless
    )
    for _ in range(rows):
        row = np.zeros(row_slots, dtype=np.uint32)
        packer.fill(row)
        wanted, (file, group, epoch) = next(expected)
        assert row.tolist() == wanted
        last = reader.last
        assert (last.pq_idx, last.rg_idx, last.epoch) == (file, group, epoch)


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow],
)
@given(FILES, st.integers(2, 33), st.booleans(), st.integers(1, 3), st.data())
def test_fast_equals_plain(files, row_slots, lossless, world, data) -> None:
    rank = data.draw(st.integers(0, world - 1))
    compare(with_tokens(files), row_slots, lossless, rank, world, rows=60)


@pytest.mark.parametrize("lossless", [False, True])
def test_every_document_longer_than_a_row(lossless: bool) -> None:
    compare(with_tokens([[[50, 40, 60] * 100]]), 17, lossless, 0, 1, rows=200)


@pytest.mark.parametrize("lossless", [False, True])
def test_over_many_epochs_of_tiny_row_groups(lossless: bool) -> None:
    compare(with_tokens([[[3, 5], [7]], [[2] * 129]]), 9, lossless, 0, 1, rows=500)


def test_lossless_loses_nothing() -> None:
    """The tokens of the rows are the tokens of whole documents, each as often as it was read."""
    documents = [[100 * i + j for j in range(1 + i % 23)] for i in range(600)]
    shard = ListShard([documents])
    reader = DocumentReader(lambda index: shard, 1)
    packer = Packer(reader.read, "lossless")
    rows = np.zeros((300, 11), dtype=np.uint32)
    for row in rows:
        packer.fill(row)
    left = list(packer._documents.values())
    if packer.remainder is not None:
        left.append(packer.remainder[2])
    seen = sorted(itertools.chain(rows.ravel().tolist(), *(ids.tolist() for ids in left)))
    position = reader.position
    read = documents * position.epoch + documents[: position.document]
    assert seen == sorted(itertools.chain(*read))


def test_a_rank_without_row_groups_is_told_so() -> None:
    from trainer.data.errors import DataError

    shard = ListShard([[[1, 2, 3]]])
    reader = DocumentReader(lambda index: shard, 1, rank=1, world=2)
    with pytest.raises(DataError, match="fewer processes") as caught:
        reader.read()
    assert caught.value.code == "too_few_row_groups"
