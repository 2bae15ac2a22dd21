"""verify() finds every change of the data under a run, and names the file."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from tests.trainer.data.conftest import random_texts
from trainer.data.errors import DataChanged
from trainer.data.loader import open_loader
from trainer.data.prepared import PreparedData, verify, verify_file


@pytest.fixture
def corpus(small_corpus) -> PreparedData:
    source = random.Random(1)
    return small_corpus([[random_texts(source, 30)] for _ in range(3)])


def _edit_same_size(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


def _edit_keeping_time(path: Path) -> None:
    stat = path.stat()
    _edit_same_size(path)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def _append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"x")


def _truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 10)


def _replace(path: Path) -> None:
    other = path.with_suffix(".new")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    other.write_bytes(content)
    os.replace(other, path)


CHANGES = {
    "edited": _edit_same_size,
    "edited, its size and time kept": _edit_keeping_time,
    "longer": _append,
    "truncated": _truncate,
    "deleted": Path.unlink,
    "replaced": _replace,
}


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("change", CHANGES)
def test_f38_a_change_is_found_without_hashing_all(corpus, change, split) -> None:
    verify(corpus)
    path = Path(corpus.files(split)[-1].path)
    CHANGES[change](path)
    with pytest.raises(DataChanged) as caught:
        verify(corpus)
    assert caught.value.path == str(path)
    assert str(path) in caught.value.message


def test_f38_bits_that_changed_by_themselves_are_found_by_deep(corpus) -> None:
    """As a disk does it: no time of the file tells."""
    path = Path(corpus.train_files[0].path)
    verify(corpus, deep=True)
    _edit_keeping_time(path)
    told = corpus.train_files[0].model_copy(update={"ctime_ns": path.stat().st_ctime_ns})
    verify_file(told)
    with pytest.raises(DataChanged) as caught:
        verify_file(told, deep=True)
    assert caught.value.path == str(path)


def test_f38_touching_or_copying_back_is_no_change(corpus) -> None:
    path = Path(corpus.train_files[0].path)
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content)
    verify(corpus, deep=True)


@pytest.mark.parametrize("change", CHANGES)
def test_f38_the_loader_finds_it_too(corpus, change) -> None:
    CHANGES[change](Path(corpus.train_files[0].path))
    with (
        open_loader(corpus, split="train", rows=1, sequence_len=32) as loader,
        pytest.raises(DataChanged),
    ):
        loader.next_batch()


def test_f38_another_tokenizer_is_found(corpus) -> None:
    _append(Path(corpus.tokenizer_dir) / "tokenizer.json")
    with pytest.raises(DataChanged, match="tokenizer"):
        verify(corpus)


def test_it_is_json_and_its_identity_is_its_content(corpus, small_corpus) -> None:
    again = PreparedData.model_validate_json(corpus.model_dump_json())
    assert again == corpus
    assert again.identity() == corpus.identity() != corpus.val_identity()
    source = random.Random(1)
    texts = [[random_texts(source, 30)] for _ in range(3)]
    same = small_corpus(texts, name="elsewhere")
    assert same.identity() == corpus.identity()
    other = small_corpus([texts[1], texts[0], texts[2]], name="reordered")
    assert other.identity() != corpus.identity()
    assert other.val_identity() == corpus.val_identity()
