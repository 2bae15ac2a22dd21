"""Data as people have it: splits by name, compressed, UTF-16, hidden, damaged, null, by the 80,000.

What is left out is counted, what is damaged names file and line, and nothing called validation or
test is trained on.
"""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import random
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.trainer.data.conftest import FIXTURE, write_shard
from trainer.contract.spec import DataSpec, TokenizerSpec
from trainer.data import copying, json_array, parquet
from trainer.data import tokenizer as tokenizers
from trainer.data.errors import DataError
from trainer.data.parquet import TextFile, TextWriter
from trainer.data.prepare import PreparedData, prepare
from trainer.data.shards import LiveShard


def prepared(tmp_path: Path, **spec) -> PreparedData:
    return prepare(
        DataSpec(**spec),
        data_dir=tmp_path / "data",
        vocab_size=768,
        tokens_needed=0,
        seed_tokenizer_dir=FIXTURE / "tokenizer",
    )


def texts_of(data: PreparedData, split: str) -> list[str]:
    return [
        text for file in data.files(split) for text in TextFile(file.path, file.column).all_texts()
    ]


def words_of(data: PreparedData, split: str) -> set[str]:
    """The first word of every document: tests write the name of its file there."""
    return {text.split()[0] for text in texts_of(data, split) if text.strip()}


def counts(data: PreparedData) -> dict[str, int]:
    return {entry.reason: entry.count for entry in data.left_out}


def lines(word: str, number: int = 40) -> str:
    return "".join(
        json.dumps({"text": f"{word} {n} " + "words " * 9}) + "\n" for n in range(number)
    )


def write(path: Path, word: str) -> None:
    """A file of the kind that its name says, whose documents begin with `word`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        write_shard(path, [[f"{word} {n} words" for n in range(30)]])
    elif path.suffix == ".jsonl":
        path.write_text(lines(word))
    else:
        path.write_text(f"{word} and more words.\n\n" * 1000)


# --- splits by name ------------------------------------------------------------------------------

LAYOUTS = {
    "the layout of every tool": (
        ["train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001"],
        {"train-00000-of-00002", "train-00001-of-00002"},
        {"test-00000-of-00001"},
    ),
    "three splits": (["train", "validation", "test"], {"train"}, {"validation"}),
    "val": (["train", "val"], {"train"}, {"val"}),
    "valid": (["a.train", "a.valid", "a.test"], {"a.train"}, {"a.valid"}),
    "dev": (["my_train", "my_dev"], {"my_train"}, {"my_dev"}),
    "upper case": (["TRAIN", "Test"], {"TRAIN"}, {"Test"}),
    "numbered": (["train0", "train1", "eval0"], {"train0", "train1"}, {"eval0"}),
    "folders": (["train/0", "validation/0", "test/0"], {"train/0"}, {"validation/0"}),
    "folders below": (["data/train/0", "data/dev/0"], {"data/train/0"}, {"data/dev/0"}),
    "nothing but validation is named": (["a", "b", "validation"], {"a", "b"}, {"validation"}),
    "two words": (
        ["train_sft-00000-of-00001", "test_sft-00000-of-00001"],
        {"train_sft-00000-of-00001"},
        {"test_sft-00000-of-00001"},
    ),
}


@pytest.mark.parametrize("suffix", ["txt", "jsonl", "parquet"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_splits_are_known_by_their_names(layout, suffix, tmp_path) -> None:
    names, train, validation = LAYOUTS[layout]
    for name in names:
        write(tmp_path / "set" / f"{name}.{suffix}", name)
    source = {"txt": "text"}.get(suffix, suffix)
    data = prepared(tmp_path, source=source, path=str(tmp_path / "set"))
    assert words_of(data, "train") == train
    assert words_of(data, "val") == validation
    unused = len(set(names) - train - validation)
    assert counts(data).get("other_split", 0) == unused


@pytest.mark.parametrize("suffix", ["txt", "jsonl", "parquet"])
def test_without_names_the_rule_is_the_old_one(suffix, tmp_path) -> None:
    for name in ("a", "b", "c"):
        write(tmp_path / "set" / f"{name}.{suffix}", name)
    source = {"txt": "text"}.get(suffix, suffix)
    data = prepared(tmp_path, source=source, path=str(tmp_path / "set"))
    assert data.split_rule == "files in name order, the last is validation"
    if suffix == "parquet":
        assert (words_of(data, "train"), words_of(data, "val")) == ({"a", "b"}, {"c"})
    else:
        assert words_of(data, "train") == {"a", "b", "c"}


@pytest.mark.parametrize("suffix", ["txt", "jsonl", "parquet"])
def test_a_set_of_evaluations_alone_is_not_trained_on(suffix, tmp_path) -> None:
    for name in ("validation-0", "test-0", "test-1"):
        write(tmp_path / "set" / f"{name}.{suffix}", name)
    source = {"txt": "text"}.get(suffix, suffix)
    with pytest.raises(DataError, match="named validation or test") as caught:
        prepared(tmp_path, source=source, path=str(tmp_path / "set"))
    assert caught.value.code == "no_training_files"


@pytest.mark.parametrize("split", ["test", "validation", "dev", "test_sft", "Val"])
def test_no_spec_names_an_evaluation_to_train_on(split) -> None:
    with pytest.raises(ValueError, match="never trained on"):
        DataSpec(source="parquet", path="/x", split=split)


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_several_splits_ask_which(suffix, tmp_path) -> None:
    names = ["en-00000-of-00001", "fr-00000-of-00002", "fr-00001-of-00002"]
    for name in names:
        write(tmp_path / "set" / f"{name}.{suffix}", name)
    place = str(tmp_path / "set")
    with pytest.raises(DataError, match=r"2 splits: name .* data\.split \(en, fr\)") as caught:
        prepared(tmp_path, source=suffix, path=place)
    assert caught.value.code == "split_needed"
    data = prepared(tmp_path, source=suffix, path=place, split="fr")
    assert words_of(data, "train") <= set(names[1:])
    assert counts(data)["other_split"] == 1
    with pytest.raises(DataError, match=r"no split 'de'.*it has en, fr"):
        prepared(tmp_path, source=suffix, path=place, split="de")


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_several_configs_ask_which(suffix, tmp_path) -> None:
    for config in ("en", "de"):
        for split in ("train-0", "test-0"):
            write(tmp_path / "set" / config / f"{split}.{suffix}", f"{config}-{split}")
    place = str(tmp_path / "set")
    with pytest.raises(DataError, match=r"2 configs.*data\.config.*\(de, en\)") as caught:
        prepared(tmp_path, source=suffix, path=place)
    assert caught.value.code == "config_needed"
    data = prepared(tmp_path, source=suffix, path=place, config="de")
    assert (words_of(data, "train"), words_of(data, "val")) == ({"de-train-0"}, {"de-test-0"})
    both = prepared(tmp_path, source=suffix, path=place, config="*")
    assert words_of(both, "train") == {"en-train-0", "de-train-0"}
    with pytest.raises(DataError, match="no config 'fr'"):
        prepared(tmp_path, source=suffix, path=place, config="fr")


def test_a_clones_card_says_what_its_configs_are(tmp_path) -> None:
    root = tmp_path / "set"
    for name in ("small/a", "small/b", "large/a", "held/x"):
        write(root / f"{name}.parquet", name)
    (root / "README.md").write_text(
        "---\nconfigs:\n"
        "- config_name: small\n  data_files:\n"
        "  - split: train\n    path: small/*\n  - split: test\n    path: held/*.parquet\n"
        "- config_name: large\n  data_files: large/**\n---\n# A set\n"
    )
    with pytest.raises(DataError, match=r"\(small, large\)"):
        prepared(tmp_path, source="parquet", path=str(root))
    data = prepared(tmp_path, source="parquet", path=str(root), config="small")
    assert words_of(data, "train") == {"small/a", "small/b"}
    assert words_of(data, "val") == {"held/x"}


def test_a_file_that_is_named_itself_is_taken(tmp_path) -> None:
    write(tmp_path / "test.jsonl", "mine")
    data = prepared(tmp_path, source="jsonl", path=str(tmp_path / "test.jsonl"))
    assert words_of(data, "train") == words_of(data, "val") == {"mine"}


# --- compressed, UTF-16, hidden ------------------------------------------------------------------


def _zstd(content: bytes) -> bytes:
    return pa.compress(content, "zstd").to_pybytes()


COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "zst": _zstd,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "lz4": lambda content: pa.compress(content, "lz4").to_pybytes(),
}


@pytest.mark.parametrize("ending", COMPRESSIONS)
@pytest.mark.parametrize("suffix", ["txt", "jsonl"])
def test_compressed_files_are_read_beside_plain_ones(suffix, ending, tmp_path) -> None:
    root = tmp_path / "set"
    write(root / f"plain.{suffix}", "plain")
    packed = root / f"packed.{suffix}"
    write(packed, "packed")
    halves = packed.read_bytes()[:777], packed.read_bytes()[777:]
    packed.unlink()
    compress = COMPRESSIONS[ending]
    parts = [compress(half) for half in halves]  # two frames, as `cat a.gz b.gz` makes them
    (root / f"packed.{suffix}.{ending}").write_bytes(b"".join(parts))
    source = {"txt": "text"}.get(suffix, suffix)
    data = prepared(tmp_path, source=source, path=str(root))
    assert words_of(data, "train") == {"plain", "packed"}
    assert counts(data) == {}
    found = "".join(texts_of(data, "train") + texts_of(data, "val"))
    assert found.count("packed") == found.count("plain")


@pytest.mark.parametrize("ending", COMPRESSIONS)
def test_a_compressed_file_that_is_cut_off_names_itself(ending, tmp_path) -> None:
    file = tmp_path / f"a.jsonl.{ending}"
    content = COMPRESSIONS[ending](lines("x", 4000).encode())
    file.write_bytes(content[: len(content) * 2 // 3])
    with pytest.raises(DataError, match=rf"a\.jsonl\.{ending} is compressed and damaged") as caught:
        prepared(tmp_path, source="jsonl", path=str(file))
    assert caught.value.code == "corrupt_file"


def test_a_gz_that_a_download_has_unpacked_is_read(tmp_path) -> None:
    (tmp_path / "a.jsonl.gz").write_text(lines("plain"))
    data = prepared(tmp_path, source="jsonl", path=str(tmp_path / "a.jsonl.gz"))
    assert words_of(data, "train") == {"plain"}


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-8-sig"])
@pytest.mark.parametrize("suffix", ["txt", "jsonl"])
def test_other_unicode_encodings_are_text(suffix, encoding, tmp_path) -> None:
    path = tmp_path / f"a.{suffix}"
    write(path, "grün")
    content = path.read_text()
    path.write_bytes(content.encode(encoding))
    source = {"txt": "text"}.get(suffix, suffix)
    data = prepared(tmp_path, source=source, path=str(path))
    assert words_of(data, "train") == {"grün"}
    assert counts(data) == {}


@pytest.mark.parametrize("suffix", ["txt", "jsonl", "parquet"])
def test_what_lies_about_is_left_out_and_counted(suffix, tmp_path) -> None:
    root = tmp_path / "set"
    for name in ("a", "b"):
        write(root / f"{name}.{suffix}", name)
        (root / f"._{name}.{suffix}").write_bytes(b"\x00\x05\x16\x07\x00\x02Mac OS X")
    (root / ".DS_Store").write_bytes(b"\x00\x00\x00\x01Bud1")
    (root / ".git").mkdir()
    write(root / ".git" / f"c.{suffix}", "hidden")
    (root / f"empty.{suffix}").write_bytes(b"")
    os.mkfifo(root / f"pipe.{suffix}")
    (root / "loop").symlink_to(root)
    Path(os.fsdecode(os.fsencode(root) + b"/latin-\xe9." + suffix.encode())).write_bytes(b"xy")
    source = {"txt": "text"}.get(suffix, suffix)
    data = prepared(tmp_path, source=source, path=str(root))
    assert words_of(data, "train") | words_of(data, "val") == {"a", "b"}
    assert counts(data) == {
        "dot_file": 3,
        "dot_folder": 1,
        "empty_file": 1,
        "linked_folder": 1,
        "not_a_file": 1,
        "unreadable_name": 1,
    }
    assert any("latin-\\xe9" in note for note in data.notes)
    json.dumps(data.model_dump()).encode()
    again = prepared(tmp_path, source=source, path=str(root))
    assert again == data  # remembered corpora say what they left out too


def test_folders_are_walked_alike(tmp_path) -> None:
    for suffix in ("txt", "jsonl", "parquet"):
        for name in ("a", "deep/b", "deep/er/c", "z"):
            write(tmp_path / suffix / f"{name}.{suffix}", name)
        source = {"txt": "text"}.get(suffix, suffix)
        data = prepared(tmp_path, source=source, path=str(tmp_path / suffix))
        found = words_of(data, "train") | words_of(data, "val")
        assert found == {"a", "deep/b", "deep/er/c", "z"}, suffix


def test_eighty_thousand_small_binaries_are_one_sentence(tmp_path, monkeypatch) -> None:
    """A tenth of them, each as another file; the record of the result stays short."""
    root = tmp_path / "set"
    write(root / "a.txt", "text")
    source = random.Random(4)
    for number in range(8000):
        folder = root / f"{number % 50:02d}"
        folder.mkdir(exist_ok=True)
        (folder / f"{number}.bin").write_bytes(b"\x7fELF" + source.randbytes(20) + b"\0\xff")
    data = prepared(tmp_path, source="text", path=str(root))
    assert counts(data)["binary"] == 8000
    assert words_of(data, "train") == {"text"}
    assert len(json.dumps(data.notes)) < 2000


# --- null, blank, damaged ------------------------------------------------------------------------


def test_null_and_blank_texts_are_counted_with_their_line(tmp_path) -> None:
    file = tmp_path / "a.jsonl"
    more = [json.dumps({"text": text}) for text in (None, "", " \n", None, "x \ud800 y")]
    file.write_text(lines("good") + "\n".join(more) + "\n\n")
    data = prepared(tmp_path, source="jsonl", path=str(file))
    assert counts(data) == {"null_text": 2, "blank": 2, "half_characters": 1}
    assert any("line 41 of" in note for note in data.notes)


def test_bytes_that_are_no_utf8_name_file_and_line(tmp_path) -> None:
    for suffix, content in (("txt", "good words\n" * 1000), ("jsonl", lines("good"))):
        file = tmp_path / f"a.{suffix}"
        head = content.encode()
        bad = b"caf\xe9 au lait\n" if suffix == "txt" else b'{"text": "caf\xe9"}\n'
        file.write_bytes(head + bad + head)
        source = {"txt": "text"}.get(suffix, suffix)
        data = prepared(tmp_path, source=source, path=str(file))
        assert counts(data) == {"replaced_bytes": 1}
        line = content.count("\n") + 1
        assert any(f"line {line:,} of {file}" in note for note in data.notes), data.notes


def test_a_key_and_a_column_can_be_named(tmp_path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text("".join(json.dumps({"body": f"body {n} " * 9}) + "\n" for n in range(40)))
    with pytest.raises(DataError, match=r"has no key 'text' \(it has: body\).*data\.column"):
        prepared(tmp_path, source="jsonl", path=str(file))
    data = prepared(tmp_path, source="jsonl", path=str(file), column="body")
    assert words_of(data, "train") == {"body"}
    root = tmp_path / "set"
    root.mkdir()
    for name in ("a", "b"):
        table = {"text": [f"text {n}" for n in range(9)], "body": [f"body {n}" for n in range(9)]}
        pq.write_table(pa.table(table), root / f"{name}.parquet")
    by_text = prepared(tmp_path, source="parquet", path=str(root))
    by_body = prepared(tmp_path, source="parquet", path=str(root), column="body")
    assert (words_of(by_text, "train"), words_of(by_body, "train")) == ({"text"}, {"body"})
    assert by_text.identity() != by_body.identity()
    assert by_text.val_identity() != by_body.val_identity()
    with pytest.raises(DataError, match=r"no column 'title' \(it has: text, body\)"):
        prepared(tmp_path, source="parquet", path=str(root), column="title")


TYPES = {
    "string view": pa.string_view(),
    "large string": pa.large_string(),
    "dictionary": pa.dictionary(pa.int32(), pa.string()),
    "dictionary of large strings": pa.dictionary(pa.int32(), pa.large_string()),
}


@pytest.mark.parametrize("kind", TYPES)
def test_every_kind_of_text_column_is_text(kind, tmp_path) -> None:
    root = tmp_path / "set"
    root.mkdir()
    for name in ("a", "b"):
        values = [f"{name} {n % 5} words" for n in range(50)] + [None]
        column = pa.array(values, pa.string()).cast(TYPES[kind])
        pq.write_table(pa.table({"text": column}), root / f"{name}.parquet")
    data = prepared(tmp_path, source="parquet", path=str(root))
    assert (words_of(data, "train"), words_of(data, "val")) == ({"a"}, {"b"})
    assert counts(data) == {"null_as_empty": 2}
    assert texts_of(data, "train")[-1] == ""


def test_shards_without_rows_are_left_out_and_the_last_with_rows_validates(tmp_path) -> None:
    root = tmp_path / "set"
    root.mkdir()
    for name, rows in (("a", 3), ("b", 0), ("c", 3), ("d", 3), ("e", 0)):
        write_shard(
            root / f"{name}.parquet", [[f"{name} {n}" for n in range(rows)]] if rows else []
        )
    data = prepared(tmp_path, source="parquet", path=str(root))
    assert (words_of(data, "train"), words_of(data, "val")) == ({"a", "c"}, {"d"})
    assert counts(data)["no_rows"] == 2


# --- memory and progress -------------------------------------------------------------------------


def test_blocks_row_groups_and_reads_are_bounded_by_bytes(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(copying, "BLOCK_BYTES", 50_000)
    monkeypatch.setattr(parquet, "ROW_GROUP_CHARS", 20_000)
    monkeypatch.setattr(parquet, "BATCH_BYTES", 10_000)
    held: list[int] = []
    shuffle = random.Random.shuffle
    monkeypatch.setattr(
        random.Random,
        "shuffle",
        lambda self, block: (held.append(sum(len(t) for _, t in block)), shuffle(self, block))[1],
    )
    file = tmp_path / "a.jsonl"
    file.write_text("".join(json.dumps({"text": f"{n} " + "ö" * 3000}) + "\n" for n in range(100)))
    data = prepared(tmp_path, source="jsonl", path=str(file))
    assert len(held) > 10
    assert max(held) < 50_000 + 7000
    groups = [TextFile(f.path) for f in data.train_files]
    for text in groups:
        for group in range(text.num_row_groups):
            start, end = text.row_group_starts[group : group + 2]
            assert end - start <= 7
    train = sorted(int(text.split()[0]) for text in texts_of(data, "train"))
    val = sorted(int(text.split()[0]) for text in texts_of(data, "val"))
    assert sorted(train + val) == list(range(100))


def test_a_row_group_is_read_in_pieces_with_the_same_documents(tmp_path, monkeypatch) -> None:
    texts = [f"{n} " + "words " * 50 for n in range(300)]
    path = write_shard(tmp_path / "a.parquet", [texts, texts[:7]])
    whole = TextFile(path).texts(0)
    monkeypatch.setattr(parquet, "BATCH_BYTES", 5000)
    pieces = list(TextFile(path).batches(0))
    assert len(pieces) > 5
    assert [text for piece in pieces for text in piece] == whole == texts
    tokenizer = tokenizers.load_any(FIXTURE / "tokenizer")
    shard = LiveShard(str(path), tokenizer)
    found = [tokenizer.decode(ids[1:]) for ids in shard.documents(0, 100, 103)]
    assert found == texts[100:103]


def test_progress_moves_within_one_file(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("trainer.data.corpora.PROGRESS_SECONDS", 0.0)
    monkeypatch.setattr("trainer.data.documents.READ_BYTES", 10_000)
    file = tmp_path / "book.txt"
    file.write_text("A line of the book.\n\n" * 500_000)
    seen: list[tuple[str, float | None, str]] = []
    prepare(
        DataSpec(source="text", path=str(file)),
        data_dir=tmp_path / "data",
        vocab_size=768,
        tokens_needed=0,
        seed_tokenizer_dir=FIXTURE / "tokenizer",
        progress=lambda *report: seen.append(report),
    )
    fractions = [f for stage, f, words in seen if stage == "corpus" and f and "copying" in words]
    assert fractions == sorted(fractions)
    assert len({round(f, 1) for f in fractions}) > 5
    assert any("of 10.5 MB" in words for _, _, words in seen)


def test_a_writer_closes_a_row_group_of_many_bytes(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(parquet, "ROW_GROUP_CHARS", 100)
    writer = TextWriter(tmp_path / "a.parquet")
    for _ in range(10):
        writer.add("x" * 60)
    writer.close()
    assert TextFile(tmp_path / "a.parquet").num_row_groups == 5


# --- tokenizers of others ------------------------------------------------------------------------


def _hugging_face(folder: Path) -> None:
    vocabulary = {"a": 0, "b": 1}
    content = {"version": "1.0", "model": {"type": "BPE", "vocab": vocabulary, "merges": []}}
    (folder / "tokenizer.json").write_text(json.dumps(content))
    (folder / "tokenizer_config.json").write_text("{}")


FOREIGN: dict[str, tuple[Callable[[Path], object], str]] = {
    "hugging face": (_hugging_face, r"a Hugging Face tokenizer \(BPE, 2 tokens\)"),
    "sentencepiece": (lambda f: (f / "tokenizer.model").write_bytes(b"x"), "SentencePiece model"),
    "gpt2": (lambda f: (f / "merges.txt").write_text(""), "GPT-2 style vocabulary"),
    "bert": (lambda f: (f / "vocab.txt").write_text(""), "WordPiece vocabulary"),
    "tiktoken": (lambda f: (f / "o200k.tiktoken").write_text(""), "tiktoken vocabulary"),
    "no key": (lambda f: (f / "tokenizer.json").write_text("{}"), "it has no key 'format'"),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_a_tokenizer_of_another_program_is_called_what_it_is(case, tmp_path) -> None:
    make, words = FOREIGN[case]
    make(tmp_path)
    with pytest.raises(DataError, match=words):
        tokenizers.load_any(tmp_path)
    with pytest.raises(DataError, match=words):
        tokenizers.load_any(next(tmp_path.iterdir()))


def test_a_home_that_is_not_there_is_a_data_error(tmp_path) -> None:
    for spec in (
        DataSpec(source="text", path="~nosuchuser/x"),
        DataSpec(source="parquet", path="~nosuchuser/x"),
        DataSpec(tokenizer=TokenizerSpec(path="~nosuchuser/x")),
    ):
        with pytest.raises(DataError, match="nosuchuser"):
            prepare(spec, data_dir=tmp_path / "data", vocab_size=768, tokens_needed=0)


# --- .json ---------------------------------------------------------------------------------------


def test_json_lines_are_read_by_content_also_when_they_are_called_json(tmp_path: Path) -> None:
    """C4 and Dolma call their JSONL `.json.gz`; a description of the data set lies beside it."""
    root = tmp_path / "c4"
    root.mkdir()
    for name in ("c4-train.00000-of-00002", "c4-train.00001-of-00002", "c4-validation.00000"):
        (root / f"{name}.json.gz").write_bytes(gzip.compress(lines(name).encode()))
    (root / "dataset_info.json").write_text('{"description": "no text here"}')
    data = prepared(tmp_path, source="jsonl", path=str(root))
    assert words_of(data, "train") == {"c4-train.00000-of-00002", "c4-train.00001-of-00002"}
    assert words_of(data, "val") == {"c4-validation.00000"}
    assert counts(data) == {"other_kind": 1}


def test_beside_jsonl_a_json_file_is_left_out_and_counted(tmp_path: Path) -> None:
    root = tmp_path / "set"
    root.mkdir()
    (root / "a.jsonl").write_text(lines("a"))
    (root / "b.jsonl").write_text(lines("b"))
    (root / "settings.json").write_text("[1]")
    data = prepared(tmp_path, source="jsonl", path=str(root))
    assert counts(data) == {"other_kind": 1}


@pytest.mark.parametrize("read_bytes", [1, 7, 4 << 20])
def test_an_array_of_records_is_read(
    tmp_path: Path, read_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_array, "READ_BYTES", read_bytes)
    root = tmp_path / "set"
    root.mkdir()
    records = [{"text": f"wörter {n} " + "words " * 9, "n": [n, {"m": "]"}]} for n in range(40)]
    (root / "a.json").write_text(json.dumps(records, indent=2, ensure_ascii=False))
    (root / "b.json").write_text(" \n[ " + ",\n".join(map(json.dumps, records)) + "]\n")
    (root / "c.json").write_text(json.dumps([*records[:3], {"text": None}]))
    (root / "d.json").write_text("[]")
    data = prepared(tmp_path, source="jsonl", path=str(root))
    wanted = [record["text"] for record in records]
    read = [*texts_of(data, "train"), *texts_of(data, "val")]
    assert sorted(read) == sorted([*wanted, *wanted, *wanted[:3]])
    assert counts(data) == {"null_text": 1}
    (left,) = data.left_out
    assert left.first == f"record 4 of {root / 'c.json'}"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('[{"text": "a"}, {"text": ', "record 2 of .* is not JSON, or the file ends within it"),
        ('[{"text": "a"} {"text": "b"}]', "record 2 of .* a comma or ] is missing"),
        ('[{"text": "a"}, 5]', "record 2 of .* is not a JSON object"),
        ('[{"text": "a"}, {"body": "b"}]', "record 2 of .* has no key 'text'"),
        ('[{"text": "a"}', "record 2 of .* a comma or ] is missing"),
        ("[" * 100_000, "record 1 of .* is nested too deeply"),
        ('{\n  "text": "pretty"\n}', "line 1 of .* is not JSON"),
    ],
)
def test_a_damaged_array_names_file_and_record(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(content)
    with pytest.raises(DataError, match=said):
        prepared(tmp_path, source="jsonl", path=str(path))


def test_a_folder_of_archives_says_what_was_left_out(tmp_path: Path) -> None:
    root = tmp_path / "set"
    root.mkdir()
    for name in ("a.zip", "b.zip"):
        (root / name).write_bytes(b"PK\x03\x04" + bytes(range(256)) * 40)
    with pytest.raises(
        DataError, match=r"2 files left out \(not text in .*\); the first is .*a\.zip"
    ):
        prepared(tmp_path, source="text", path=str(root))


@pytest.mark.parametrize("name", ["test", "validation", "test.txt", "books"])
def test_a_path_that_is_called_test_is_used_and_noted(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name.endswith(".txt"):
        path.write_text("words and words\n\n" * 2000)
    else:
        path.mkdir()
        for file in ("a.txt", "b.txt"):
            (path / file).write_text("words and words\n\n" * 2000)
    data = prepared(tmp_path, source="text", path=str(path))
    noted = any("trained on because data.path names it" in note for note in data.notes)
    assert noted == (name != "books")
