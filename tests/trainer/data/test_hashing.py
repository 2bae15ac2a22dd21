"""A corpus too large to be hashed first: named by samples, hashed in the background."""

from __future__ import annotations

import os
import random
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.trainer.data.conftest import random_texts, write_shard
from trainer.contract.spec import DataSpec
from trainer.data import background_check, contents, corpora, fingerprints, hashing
from trainer.data.background_check import BackgroundCheck, HashingProgress
from trainer.data.errors import DataChanged
from trainer.data.fingerprints import SAMPLE_BYTES, FileStat
from trainer.data.prepared import PreparedData, verify, verify_file

BIG = 40 * SAMPLE_BYTES
UNSAMPLED = 5 * SAMPLE_BYTES  # a place outside the three blocks
SECONDS = 60


@pytest.fixture
def sampled(small_corpus, monkeypatch: pytest.MonkeyPatch) -> PreparedData:
    """Three train files, named by samples as those of a large corpus are; one for validation."""
    monkeypatch.setattr(contents, "HASH_FIRST_BYTES", 0)
    source = random.Random(5)
    return small_corpus([[random_texts(source, 30)] for _ in range(4)])


def big_file(path: Path) -> Path:
    path.write_bytes(random.Random(1).randbytes(BIG))
    return path


def write_at(path: str | Path, place: int, content: bytes) -> None:
    with open(path, "r+b") as file:
        file.seek(place)
        file.write(content)


# --- names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("place", "noticed"),
    [(0, True), (SAMPLE_BYTES - 1, True), (BIG // 2, True), (BIG - 1, True), (UNSAMPLED, False)],
)
def test_a_sample_has_the_ends_and_the_middle(tmp_path: Path, place: int, noticed: bool) -> None:
    path = big_file(tmp_path / "f")
    before = fingerprints.sample(path)
    write_at(path, place, bytes([path.read_bytes()[place] ^ 1]))
    assert (fingerprints.sample(path) != before) == noticed


def test_a_sample_has_the_size(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(BIG))
    (tmp_path / "b").write_bytes(bytes(BIG + 1))
    assert fingerprints.sample(tmp_path / "a") != fingerprints.sample(tmp_path / "b")


def test_a_large_corpus_is_not_read_before_the_first_answer(
    small_corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    full = fingerprints.full
    monkeypatch.setattr(fingerprints, "full", lambda path: [read.append(path), full(path)][1])
    files = [[["some text " * 50]] for _ in range(4)]
    small = small_corpus(files, name="small")
    assert [Path(path).name for path in sorted(read)] == [f"shard_00{i}.parquet" for i in range(4)]
    assert not any(file.sampled for file in small.train_files)
    read.clear()
    monkeypatch.setattr(contents, "HASH_FIRST_BYTES", 1000)
    large = small_corpus(files, name="large")
    assert all(file.sampled for file in large.train_files)
    # val bpb is compared between runs: its file is named by every byte
    assert [Path(path).name for path in read] == ["shard_003.parquet"]
    assert small.val_identity() == large.val_identity()


def test_looking_at_thousands_of_files_reports_a_fraction_now_and_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpora, "PROGRESS_SECONDS", 0.0)
    folder = tmp_path / "corpus"
    folder.mkdir()
    for number in range(5):
        write_shard(folder / f"shard_{number:05d}.parquet", [["some text"] * 3])
    fractions: list[float | None] = []
    corpora.collect(
        DataSpec(source="parquet", path=str(folder)),
        tmp_path / "corpora",
        None,
        lambda fraction, words: fractions.append(fraction) if "reading" in words else None,
    )
    assert fractions == [None, 0.0, 0.25, 0.5, 0.75, 0.0]  # validation is found first, read last


def test_names_do_not_depend_on_what_was_hashed_before(sampled: PreparedData, small_corpus) -> None:
    hashing.hash_all(sampled, lambda: False)
    source = random.Random(5)
    again = small_corpus([[random_texts(source, 30)] for _ in range(4)])
    assert again.identity() == sampled.identity()


# --- hashing -------------------------------------------------------------------------------------


def test_everything_is_hashed_once(sampled: PreparedData) -> None:
    left = hashing.left_to_hash(sampled)
    assert [file.path for file in left] == [file.path for file in sampled.train_files]
    state = hashing.hash_all(sampled, lambda: False)
    total = sum(file.size for file in sampled.train_files)
    assert (state["done_bytes"], state["total_bytes"], state["finished"]) == (total, total, True)
    assert (state["changed"], state["touched"]) == ([], [])
    assert hashing.left_to_hash(sampled) == []
    assert hashing.read_state(sampled) == state


def test_it_goes_on_where_it_was_stopped(sampled: PreparedData) -> None:
    asked = iter([False, True])
    with pytest.raises(hashing.HashingStopped):
        hashing.hash_all(sampled, lambda: next(asked))
    left = hashing.left_to_hash(sampled)
    assert [file.path for file in left] == [file.path for file in sampled.train_files[1:]]
    state = hashing.read_state(sampled)
    assert state is not None
    assert state["done_bytes"] == sampled.train_files[0].size
    assert not state["finished"]
    calls: list[int] = []
    hashing.hash_all(sampled, lambda: bool(calls.append(1)))
    assert len(calls) == 2  # one chunk of each file that was left


def test_a_file_that_changed_is_named_and_the_others_are_hashed(sampled: PreparedData) -> None:
    path = sampled.train_files[1].path
    write_at(path, 0, b"X")
    state = hashing.hash_all(sampled, lambda: False)
    assert state["changed"] == [[path, "has other content than when the run was prepared"]]
    assert [file.path for file in hashing.left_to_hash(sampled)] == [path]


def test_a_file_that_is_gone_is_named(sampled: PreparedData) -> None:
    path = sampled.train_files[2].path
    os.unlink(path)
    ((named, why),) = hashing.hash_all(sampled, lambda: False)["changed"]
    assert named == path
    assert "cannot be found any more" in why


def test_a_file_that_was_only_touched_is_taken_and_reported(sampled: PreparedData) -> None:
    path = sampled.train_files[0].path
    os.utime(path)
    state = hashing.hash_all(sampled, lambda: False)
    assert (state["changed"], state["touched"]) == ([], [path])
    verify(sampled)
    assert hashing.left_to_hash(sampled) == []


def test_once_hashed_a_change_of_any_byte_is_noticed(sampled: PreparedData, tmp_path: Path) -> None:
    seen = FileStat.of(big_file(tmp_path / "f"))
    file = sampled.train_files[0].model_copy(
        update={
            "path": seen.path, "size": seen.size, "mtime_ns": seen.mtime_ns, "inode": seen.inode,
            "ctime_ns": seen.ctime_ns, "sha256": fingerprints.sample(seen.path),
        }
    )  # fmt: skip
    fingerprints.record(tmp_path, seen, fingerprints.full(seen.path))
    write_at(seen.path, UNSAMPLED, b"X")
    verify_file(file)  # by its sample alone it is the same
    with pytest.raises(DataChanged, match="has other content"):
        verify_file(file, corpora_dir=tmp_path)


# --- beside a run --------------------------------------------------------------------------------


def until(check: BackgroundCheck, wanted: Callable[[HashingProgress], bool]) -> HashingProgress:
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        found = check.poll()
        if found is not None and wanted(found):
            return found
        time.sleep(0.02)
    raise AssertionError("nothing of the kind was reported")


@pytest.fixture
def check(sampled: PreparedData, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(background_check, "POLL_SECONDS", 0.0)
    monkeypatch.setattr(background_check, "RESTART_SECONDS", 0.05)
    made = BackgroundCheck(sampled)
    yield made
    made.close()


def test_a_process_hashes_beside_the_run(check: BackgroundCheck, sampled: PreparedData) -> None:
    found = until(check, lambda progress: progress.finished)
    assert found.done_bytes == found.total_bytes == sum(f.size for f in sampled.train_files)
    assert hashing.left_to_hash(sampled) == []
    assert check.poll() is None
    assert BackgroundCheck(sampled).finished  # the next attempt has nothing to do


def test_what_it_finds_is_raised_with_the_file(check: BackgroundCheck, sampled: PreparedData):
    write_at(sampled.train_files[1].path, 0, b"X")
    with pytest.raises(DataChanged, match=r"shard_001\.parquet has other content"):
        until(check, lambda progress: progress.finished)


def test_what_an_earlier_process_left_behind_is_not_believed(
    check: BackgroundCheck, sampled: PreparedData
) -> None:
    """It named a file as changed, which was put right since."""
    path, content = sampled.train_files[1].path, Path(sampled.train_files[1].path).read_bytes()
    write_at(path, 0, b"X")
    assert hashing.hash_all(sampled, lambda: False)["changed"]
    assert hashing.live_state(sampled) is None
    Path(path).write_bytes(content)
    assert until(check, lambda progress: progress.finished).touched == [path]


def test_a_process_that_dies_is_started_again(check: BackgroundCheck, monkeypatch) -> None:
    started: list[subprocess.Popen[bytes]] = []
    start = background_check.helper_process.start

    def killed_once(module: str, *arguments: str) -> subprocess.Popen[bytes]:
        started.append(start(module, *arguments))
        if len(started) == 1:
            started[0].kill()
        return started[-1]

    monkeypatch.setattr(background_check.helper_process, "start", killed_once)
    until(check, lambda progress: progress.finished)
    assert len(started) >= 2
