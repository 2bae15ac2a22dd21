"""The token cache survives kills, keeps within its cap and never gives other tokens."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.trainer.data.conftest import random_texts
from trainer.contract import durable
from trainer.data import cache, shards
from trainer.data import tokenizer as tokenizers
from trainer.data.parquet import TextFile
from trainer.data.prepared import PreparedData
from trainer.data.shards import BadCache, CachedShard, LiveShard

ROOT = Path(__file__).parents[3]


@pytest.fixture
def corpus(small_corpus) -> PreparedData:
    source = random.Random(8)
    return small_corpus([[random_texts(source, n) for n in (70, 1, 130)] for _ in range(4)])


def cached(prepared: PreparedData) -> list[Path]:
    return sorted(Path(prepared.cache_dir).glob("*.tokens"))


def test_cache_equals_text(corpus) -> None:
    tokenizer = tokenizers.load(corpus.tokenizer_dir)
    for file in corpus.train_files:
        shard = cache.open_shard(file, corpus.cache_dir, tokenizer)
        live = LiveShard(file.path, tokenizer)
        assert isinstance(shard, CachedShard)
        assert shard.num_row_groups == live.num_row_groups == 3
        texts = list(TextFile(file.path).all_texts())
        for group in range(3):
            first, last = shard.span(group)
            assert (first, last) == live.span(group)
            pairs = zip(
                shard.documents(group, first, last),
                live.documents(group, first, last),
                texts[first:last],
                strict=True,
            )
            for from_cache, from_text, text in pairs:
                assert np.array_equal(from_cache, from_text)
                assert from_cache[0] == tokenizer.bos_id
                assert tokenizer.decode(from_cache[1:]) == text
        some = [200, 0, 70, 71, 3]
        for a, b in zip(shard.pick(some), live.pick(some), strict=True):
            assert np.array_equal(a, b)


@pytest.mark.parametrize("where", [0, 9, 20, 100, 4096, 5000, -1])
def test_a_flipped_bit_is_seen(corpus, where) -> None:
    path = cached(corpus)[0]
    content = bytearray(path.read_bytes())
    content[where] ^= 4
    path.write_bytes(content)
    sha = next(
        f.sha256 for f in corpus.train_files + corpus.val_files if path.name[:32] in f.sha256
    )
    with pytest.raises(BadCache):
        CachedShard(path, corpus.tokenizer_sha256, sha)


@pytest.mark.parametrize("size", [0, 10, 4095, 4096, 6000])
def test_a_short_file_is_seen(corpus, size) -> None:
    path = cached(corpus)[0]
    os.truncate(path, size)
    with pytest.raises(BadCache):
        shards.read_header(path)


def test_anothers_cache_is_not_taken(corpus) -> None:
    path = cached(corpus)[0]
    with pytest.raises(BadCache, match="another text or tokenizer"):
        CachedShard(path, "0" * 64, corpus.train_files[0].sha256)


def _bare(corpus: PreparedData, tmp_path: Path, **changes) -> tuple[PreparedData, Path]:
    """The same data with an empty cache, and its description on disk."""
    changes = {"cache_dir": str(tmp_path / "bare" / "t"), **changes}
    bare = corpus.model_copy(update=changes)
    description = tmp_path / "data.json"
    description.write_text(bare.model_dump_json())
    return bare, description


def _builder(description: Path, parent: int | None = None) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-P", "-m", "trainer.data.cache", str(description)]
    if parent is not None:
        command.append(str(parent))
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)})


def _wait(condition, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.002)


@pytest.fixture
def long_corpus(small_corpus) -> PreparedData:
    source = random.Random(4)
    return small_corpus([[random_texts(source, 400, 400)] * 3 for _ in range(7)])


def test_killed_and_begun_again(long_corpus, tmp_path) -> None:
    """A kill leaves whole files and perhaps a temporary one; the next continues from there."""
    bare, description = _bare(long_corpus, tmp_path)
    builder = _builder(description)
    _wait(lambda: len(cached(bare)) >= 2 and list(Path(bare.cache_dir).glob(".*.tmp")))
    builder.send_signal(signal.SIGKILL)
    builder.wait()
    kept = {path.name: path.stat().st_ino for path in cached(bare)}
    assert 2 <= len(kept) < len(bare.train_files)
    for path in cached(bare):
        shards.read_header(path)
    assert _builder(description).wait(60) == 0
    whole = {path.name: path.stat().st_ino for path in cached(bare)}
    assert len(whole) == len(bare.train_files)
    assert {name: whole[name] for name in kept} == kept
    assert not list(Path(bare.cache_dir).glob(".*.tmp"))
    for path in cached(bare):
        assert path.read_bytes() == (Path(long_corpus.cache_dir) / path.name).read_bytes()


def test_the_builder_goes_when_its_parent_goes(long_corpus, tmp_path) -> None:
    bare, description = _bare(long_corpus, tmp_path)
    assert _builder(description, parent=2**22 - 1).wait(60) == 0
    assert len(cached(bare)) < len(bare.train_files)
    assert not list(Path(bare.cache_dir).glob(".*.tmp"))


def test_a_second_builder_has_nothing_to_do(long_corpus, tmp_path) -> None:
    import fcntl

    bare, description = _bare(long_corpus, tmp_path)
    Path(bare.cache_dir).mkdir(parents=True)
    with cache.lock_path(bare).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert _builder(description).wait(60) == 0
    assert cached(bare) == []


def test_a_builder_says_what_is_wrong(long_corpus, tmp_path) -> None:
    bare, description = _bare(long_corpus, tmp_path)
    Path(bare.train_files[1].path).write_bytes(b"changed")
    assert _builder(description).wait(60) == 1
    said = (Path(bare.cache_dir) / cache.ERROR_FILE).read_text()
    assert "shard_001.parquet had" in said


def test_the_cap_holds(corpus, tmp_path) -> None:
    """No room: nothing is built, nothing is raised, the loader reads the text."""
    tokenizer = tokenizers.load(corpus.tokenizer_dir)
    directory = tmp_path / "small" / "t"
    assert cache.build(corpus.train_files, directory, tokenizer, cap_bytes=100) == {}
    assert list(directory.glob("*.tokens")) == []
    shard = cache.open_shard(corpus.train_files[0], directory, tokenizer)
    assert isinstance(shard, LiveShard)


def test_the_longest_unused_goes_first(tmp_path) -> None:
    root = tmp_path / "tokens"
    now = time.time()
    for name, age in [("old", 9000.0), ("older", 20_000.0), ("recent", 10.0), ("mine", 30_000.0)]:
        path = root / name / "x.tokens"
        path.parent.mkdir(parents=True)
        path.write_bytes(bytes(1000))
        os.utime(path, (now - age, now - age))
    keep = {root / "mine" / "x.tokens"}
    assert cache.make_room(root / "new", 1000, 4000, keep)
    assert {p.parent.name for p in root.glob("*/*.tokens")} == {"old", "recent", "mine"}
    assert not cache.make_room(root / "new", 2500, 4000, keep)
    assert {p.parent.name for p in root.glob("*/*.tokens")} == {"recent", "mine"}


def test_reading_marks_as_used(corpus) -> None:
    path = cache.cache_path(corpus.cache_dir, corpus.train_files[0].sha256)
    os.utime(path, (0, 0))
    cache.open_shard(corpus.train_files[0], corpus.cache_dir, tokenizers.load(corpus.tokenizer_dir))
    assert time.time() - path.stat().st_mtime < 100


def test_a_write_that_fails_leaves_nothing(tmp_path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"before")

    def failing() -> None:
        with durable.replacing(path, durable.BY_UMASK) as file:
            file.write(b"half")
            raise RuntimeError("power")

    with pytest.raises(RuntimeError, match="power"):
        failing()
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_wide_vocabularies_take_four_bytes(tmp_path, small_corpus) -> None:
    """70,000 tokens do not fit into uint16."""
    tokens = [bytes([b]) for b in range(256)]
    tokens += [bytes([a, b]) for a in range(256) for b in range(256)]
    tokens += [b"\0\0" + bytes([a, b]) for a in range(20) for b in range(256)]
    tokenizer = tokenizers.Tokenizer(
        tokenizers.SPLIT_PATTERN, tokens[:70_000], tokenizers.SPECIAL_TOKENS
    )
    corpus = small_corpus([[["hello", "wörld"]], [["val"]]])
    cache.build(corpus.train_files, tmp_path / "wide" / "t", tokenizer)
    shard = cache.open_shard(corpus.train_files[0], tmp_path / "wide" / "t", tokenizer)
    assert isinstance(shard, CachedShard)
    assert shard.tokens.dtype == np.uint32
    first = shard.documents(0, 0, 1)[0]
    assert first[0] == 70_000
    assert tokenizer.decode(first[1:]) == "hello"
