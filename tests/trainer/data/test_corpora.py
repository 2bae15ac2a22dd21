"""Every source becomes shards, every unusable one a sentence that names what is wrong."""

from __future__ import annotations

import json
import os
import random
import re
from pathlib import Path

import pytest

from tests.trainer.data.conftest import FIXTURE, random_texts, write_shard
from trainer.contract.spec import DataSpec, TokenizerSpec
from trainer.data import documents
from trainer.data.errors import DataError
from trainer.data.loader import open_loader
from trainer.data.parquet import TextFile
from trainer.data.prepare import PreparedData, prepare, verify

SENTENCES = "The rain falls on the hill, and the river takes it to the sea.\n\n"


def prepared(spec: DataSpec, tmp_path: Path, **options) -> PreparedData:
    settings = {"vocab_size": 768, "tokens_needed": 0, "seed_tokenizer_dir": FIXTURE / "tokenizer"}
    return prepare(spec, data_dir=tmp_path / "data", **{**settings, **options})


def texts_of(data: PreparedData, split: str) -> list[str]:
    return [text for file in data.files(split) for text in TextFile(file.path).all_texts()]


# --- the built-in corpus -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small_stdlib(tmp_path_factory) -> Path:
    """A standard library in small: the real one takes seconds and has its own test."""
    root = tmp_path_factory.mktemp("stdlib")
    source = random.Random(3)
    for name in ("a.py", "b.py", "json/decoder.py", "test/t.py", "site-packages/s.py"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text("\n\n".join(random_texts(source, 60)) + f"\n# file {name}\n")
    (root / "notes.txt").write_text("no source")
    return root


def test_builtin_is_the_standard_library_without_its_tests(
    small_stdlib, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(small_stdlib))
    data = prepared(DataSpec(), tmp_path)
    text = "".join(texts_of(data, "train") + texts_of(data, "val"))
    for name, there in [("a.py", True), ("json/decoder.py", True), ("test/t.py", False)]:
        assert (f"# file {name}" in text) == there
    assert "site-packages" not in text
    assert "no source" not in text
    assert len(data.train_files) > 1 or len(texts_of(data, "train")) < 1000


def test_builtin_is_a_copy_that_updates_do_not_change(small_stdlib, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(small_stdlib))
    before = prepared(DataSpec(), tmp_path)
    again = prepared(DataSpec(), tmp_path)
    assert again == before
    (small_stdlib / "a.py").write_text("# a new version\n" * 500)
    verify(before, deep=True)
    kept = prepared(DataSpec(), tmp_path, previous=before)
    assert kept == before
    after = prepared(DataSpec(), tmp_path)
    assert after.identity() != before.identity()


def test_the_real_builtin_corpus(tmp_path) -> None:
    """Whole: collected, tokenizer trained, tokenized, and at once when asked again."""
    stages = []
    data = prepare(
        DataSpec(),
        data_dir=tmp_path,
        vocab_size=4096,
        tokens_needed=1000,
        progress=lambda stage, fraction, words: stages.append((stage, fraction, words)),
    )
    assert [s for i, s in enumerate(x[0] for x in stages) if i == 0 or stages[i - 1][0] != s] == [
        "corpus",
        "tokenizer",
        "tokens",
    ]
    assert all(fraction is None or 0 <= fraction <= 1 for _, fraction, _ in stages)
    assert data.corpus_tokens > 1_000_000
    assert data.corpus_tokens_exact
    assert data.val_tokens > 50_000
    assert len(data.train_files) >= 2
    made = {path: path.stat().st_ino for path in tmp_path.rglob("*")}
    assert prepare(DataSpec(), data_dir=tmp_path, vocab_size=4096, tokens_needed=1000) == data
    assert {path: path.stat().st_ino for path in tmp_path.rglob("*")} == made
    with open_loader(data, split="train", rows=4, sequence_len=256) as loader:
        assert loader.next_batch().inputs_BT.shape == (4, 256)


# --- text, JSONL, parquet ------------------------------------------------------------------------


def test_text_folder(tmp_path) -> None:
    folder = tmp_path / "texts"
    (folder / "deep").mkdir(parents=True)
    (folder / "one.txt").write_text("\ufeff" + SENTENCES * 300, encoding="utf-8")
    (folder / "deep" / "two.md").write_text("Zwei. " * 500)
    (folder / "binary.dat").write_bytes(b"\x00\x01" * 5000)
    (folder / "latin.txt").write_bytes("grün und weiß\n".encode("latin-1") * 200)
    (folder / "empty.txt").write_text("")
    (folder / ".hidden").write_text("secret " * 500)
    (folder / "loop").symlink_to(folder)
    data = prepared(DataSpec(source="text", path=str(folder)), tmp_path)
    text = "".join(texts_of(data, "train") + texts_of(data, "val"))
    assert text.count("The rain falls") == 300
    assert "Zwei." in text
    assert "gr\ufffdn" in text
    assert "secret" not in text
    assert "\ufeff" not in text
    notes = "\n".join(data.notes)
    assert re.search(r"1 file left out \(not text in UTF-8 or UTF-16\).*binary\.dat", notes)
    assert re.search(r"1 folder left out \(a link to a folder.*loop", notes)
    assert re.search(r"1 file changed \(bytes that are not UTF-8.*line 1 of .*latin\.txt", notes)
    assert re.search(r"1 file left out \(the name begins with a dot.*\.hidden", notes)
    assert re.search(r"1 file left out \(no bytes.*empty\.txt", notes)


def test_one_text_file_is_train_and_val(tmp_path) -> None:
    file = tmp_path / "book.txt"
    file.write_text("".join(f"Line {n} of the book.\n\n" for n in range(5000)))
    data = prepared(DataSpec(source="text", path=str(file)), tmp_path)
    train, val = texts_of(data, "train"), texts_of(data, "val")
    assert val
    assert not set(train) & set(val)
    whole = "".join(sorted(train + val, key=lambda t: int(t.split()[1])))
    assert whole == file.read_text()


def test_characters_at_a_chunks_end_are_whole(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(documents, "READ_BYTES", 7)
    file = tmp_path / "line.txt"
    file.write_text("é🌍ö" * 4000, encoding="utf-8")
    data = prepared(DataSpec(source="text", path=str(file)), tmp_path)
    assert data.notes == []
    assert "\ufffd" not in "".join(texts_of(data, "train"))


@pytest.mark.parametrize("max_chars", [1, 7, 100])
def test_cutting_loses_nothing(max_chars) -> None:
    text = "a\n\nbb\nccc dddd\n\n\n" * 20 + "x" * 50
    pieces = list(documents.cut(text, max_chars))
    assert "".join(pieces) == text
    assert max(len(piece) for piece in pieces) <= max_chars


def test_jsonl(tmp_path) -> None:
    folder = tmp_path / "lines"
    folder.mkdir()
    for name in ("a", "b"):
        lines = [json.dumps({"text": f"{name}{n} " * 20, "id": n}) for n in range(100)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n\n")
    (folder / "README.md").write_text("not data")
    data = prepared(DataSpec(source="jsonl", path=str(folder)), tmp_path)
    found = texts_of(data, "train") + texts_of(data, "val")
    assert len(found) == 200
    assert f"{'b7 ' * 20}" in found
    assert len(texts_of(data, "val")) == 10
    again = prepared(DataSpec(source="jsonl", path=str(folder)), tmp_path)
    assert again == data


def test_half_characters_of_json_do_no_harm(tmp_path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text(
        "".join(json.dumps({"text": f"{n} \ud800 " + "word " * 30}) + "\n" for n in range(30))
    )
    data = prepared(DataSpec(source="jsonl", path=str(file)), tmp_path)
    assert any("0 ? word" in text for text in texts_of(data, "train"))


def test_parquet_files_stay_where_they_are(small_corpus) -> None:
    data = small_corpus([[["train " * 50]], [["more " * 50, ""]], [["val " * 50]]])
    assert [Path(f.path).name for f in data.train_files] == [
        "shard_000.parquet",
        "shard_001.parquet",
    ]
    assert texts_of(data, "val") == ["val " * 50]
    assert data.corpus_tokens_exact


def test_max_shards_takes_the_first(tmp_path) -> None:
    for number in range(5):
        write_shard(tmp_path / f"s{number}.parquet", [[f"text {number} " * 30]])
    data = prepared(DataSpec(source="parquet", path=str(tmp_path), max_shards=2), tmp_path)
    assert [Path(f.path).name for f in data.train_files] == ["s0.parquet", "s1.parquet"]
    assert Path(data.val_files[0].path).name == "s4.parquet"


# --- what cannot be used -------------------------------------------------------------------------


def _nothing(path: Path) -> None:
    path.mkdir()


def _whitespace(path: Path) -> None:
    path.mkdir()
    (path / "a.txt").write_text(" \n" * 5000)


def _little(path: Path) -> None:
    path.mkdir()
    (path / "a.txt").write_text("Too little.")


def _dangling(path: Path) -> None:
    path.mkdir()
    (path / "a.txt").symlink_to(path / "gone.txt")


def _pipe(path: Path) -> None:
    os.mkfifo(path)


UNUSABLE_TEXT = {
    "missing": (lambda path: None, "path_not_found", "does not exist"),
    "empty folder": (_nothing, "no_text", "no text files"),
    "only spaces": (_whitespace, "no_text", "0 characters"),
    "too little": (_little, "corpus_too_small", "at least 1,000 characters"),
    "dangling link": (_dangling, "path_not_found", "link to something that is not there"),
    "pipe": (_pipe, "path_not_a_file", "neither a file nor a folder"),
}


@pytest.mark.parametrize("case", UNUSABLE_TEXT)
def test_unusable_text(case, tmp_path) -> None:
    make, code, words = UNUSABLE_TEXT[case]
    path = tmp_path / "corpus"
    make(path)
    with pytest.raises(DataError, match=words) as caught:
        prepared(DataSpec(source="text", path=str(path)), tmp_path)
    assert caught.value.code == code
    assert str(path) in str(caught.value.path)
    left = [p.name for p in (tmp_path / "data" / "corpora").iterdir()]
    assert not [name for name in left if "writing" in name or name.startswith("text-")]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"body": "x"}', "line 2 of .* has no key 'text' .it has: body."),
        ("{broken", "line 2 of .* is not JSON"),
        ('{"text": 3}', "line 2 of .* has a key 'text' that is int, not text"),
        ('["text"]', "line 2 of .* is not a JSON object"),
        ("[" * 100_000, "line 2 of .* is not JSON"),
    ],
)
def test_unusable_jsonl(line, words, tmp_path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "fine"}\n' + line + "\n")
    with pytest.raises(DataError, match=words) as caught:
        prepared(DataSpec(source="jsonl", path=str(file)), tmp_path)
    assert caught.value.code == "bad_jsonl"


def _one_file(path: Path) -> None:
    write_shard(path / "a.parquet", [["text"]])


def _no_rows(path: Path) -> None:
    write_shard(path / "a.parquet", [])
    write_shard(path / "b.parquet", [["text"]])


def _other_column(path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"body": ["x"]}), path / "a.parquet")
    write_shard(path / "b.parquet", [["text"]])


def _numbers(path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"text": [1, 2]}), path / "a.parquet")
    write_shard(path / "b.parquet", [["text"]])


def _garbage(path: Path) -> None:
    (path / "a.parquet").write_bytes(b"not parquet at all")
    write_shard(path / "b.parquet", [["text"]])


def _cut_off(path: Path) -> None:
    write_shard(path / "a.parquet", [["text " * 100] * 10])
    content = (path / "a.parquet").read_bytes()
    (path / "a.parquet").write_bytes(content[: len(content) // 2])
    write_shard(path / "b.parquet", [["text"]])


def _damaged_pages(path: Path) -> None:
    write_shard(path / "a.parquet", [[f"text {n} " * 100 for n in range(50)]])
    content = bytearray((path / "a.parquet").read_bytes())
    content[4:400] = b"\xff" * 396
    (path / "a.parquet").write_bytes(content)
    write_shard(path / "b.parquet", [["text"]])


def _dangling_shard(path: Path) -> None:
    (path / "a.parquet").symlink_to(path / "gone")
    write_shard(path / "b.parquet", [["text"]])


UNUSABLE_PARQUET = {
    "nothing": (lambda path: None, "no_validation_file", "0 parquet files"),
    "one file": (_one_file, "no_validation_file", "1 parquet file; at least two"),
    "no rows": (_no_rows, "no_text", "holds no documents"),
    "no column": (_other_column, "no_text_column", r"no column 'text' \(it has: body\)"),
    "numbers": (_numbers, "no_text_column", "is int64, not text"),
    "garbage": (_garbage, "corrupt_shard", "is not readable parquet"),
    "cut off": (_cut_off, "corrupt_shard", "is not readable parquet"),
    "damaged pages": (_damaged_pages, "corrupt_shard", "is not readable parquet"),
    "dangling": (_dangling_shard, "path_not_found", "a link to something that is not there"),
}


@pytest.mark.parametrize("case", UNUSABLE_PARQUET)
def test_unusable_parquet(case, tmp_path) -> None:
    make, code, words = UNUSABLE_PARQUET[case]
    path = tmp_path / "corpus"
    path.mkdir()
    make(path)
    with pytest.raises(DataError, match=words) as caught:
        prepared(DataSpec(source="parquet", path=str(path)), tmp_path)
    assert caught.value.code == code
    assert caught.value.path


def test_a_single_parquet_file_as_path(tmp_path) -> None:
    file = write_shard(tmp_path / "a.parquet", [["text"]])
    with pytest.raises(DataError, match="is one file; give a folder"):
        prepared(DataSpec(source="parquet", path=str(file)), tmp_path)


def test_no_permission(tmp_path, monkeypatch) -> None:
    """The system's answer is played, since root may read everything."""
    file = tmp_path / "a.txt"
    file.write_text(SENTENCES * 100)
    real_open = Path.open

    def refusing(self: Path, *arguments, **options):
        if self == file:
            raise PermissionError(13, "Permission denied", str(self))
        return real_open(self, *arguments, **options)

    monkeypatch.setattr(Path, "open", refusing)
    with pytest.raises(DataError, match=r"cannot read .*a\.txt: Permission denied") as caught:
        prepared(DataSpec(source="text", path=str(file)), tmp_path)
    assert caught.value.code == "path_unreadable"


def test_the_vocabulary_must_be_the_tokenizers(tmp_path, small_corpus) -> None:
    with pytest.raises(DataError, match=r"768 tokens and the model 4,096") as caught:
        prepared(DataSpec(), tmp_path, vocab_size=4096)
    assert caught.value.code == "tokenizer_mismatch"


def test_a_tokenizer_by_path(tmp_path) -> None:
    file = tmp_path / "book.txt"
    file.write_text(SENTENCES * 100)
    spec = DataSpec(
        source="text",
        path=str(file),
        tokenizer=TokenizerSpec(path=str(FIXTURE / "tokenizer")),
    )
    data = prepared(spec, tmp_path, seed_tokenizer_dir=None)
    assert data.tokenizer_sha256 == prepared(spec, tmp_path).tokenizer_sha256
    missing = DataSpec(
        source="text", path=str(file), tokenizer=TokenizerSpec(path=str(tmp_path / "no"))
    )
    with pytest.raises(DataError, match="no tokenizer in"):
        prepared(missing, tmp_path, seed_tokenizer_dir=None)


def test_a_corpus_too_small_to_train_a_tokenizer(tmp_path) -> None:
    file = tmp_path / "book.txt"
    file.write_text(SENTENCES * 100)
    with pytest.raises(DataError, match="too small for a vocabulary") as caught:
        prepared(
            DataSpec(source="text", path=str(file)),
            tmp_path,
            seed_tokenizer_dir=None,
            vocab_size=4096,
        )
    assert caught.value.code == "corpus_too_small"
