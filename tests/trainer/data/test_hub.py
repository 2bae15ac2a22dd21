"""A data set by name: the real downloader against a mirror on loopback."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.trainer.data.conftest import FIXTURE, random_texts, write_shard
from tests.trainer.data.mirror import Mirror, serving
from trainer.contract.spec import DataSpec
from trainer.data import hub
from trainer.data.errors import DataError
from trainer.data.loader import Loader, open_loader
from trainer.data.prepare import PreparedData, prepare, verify

NAME = "someone/words"
SPEC = DataSpec(source="hf", name=NAME, max_shards=3)


@pytest.fixture
def mirror(tmp_path, monkeypatch) -> Iterator[Mirror]:
    folder = tmp_path / "hub"
    folder.mkdir()
    source = random.Random(2)
    for number in range(5):
        write_shard(folder / f"shard_{number:05d}.parquet", [random_texts(source, 200)] * 2)
    (folder / "README.md").write_text("words")
    with serving(Mirror(folder, NAME, "a" * 40)) as served:
        monkeypatch.setenv("HF_ENDPOINT", served.endpoint)
        monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
        yield served


def prepared(tmp_path: Path, spec: DataSpec = SPEC, **options) -> PreparedData:
    return prepare(
        spec,
        data_dir=tmp_path / "data",
        vocab_size=768,
        tokens_needed=1000,
        seed_tokenizer_dir=FIXTURE / "tokenizer",
        **options,
    )


def downloads(mirror: Mirror) -> list[str]:
    return [path.rpartition("/")[2] for verb, path, _ in mirror.requests if verb == "GET"][1:]


def test_only_what_is_needed_to_begin_is_fetched(mirror, tmp_path) -> None:
    said = []
    data = prepared(tmp_path, progress=lambda *report: said.append(report))
    assert downloads(mirror) == ["shard_00004.parquet", "shard_00000.parquet"]
    assert [Path(f.path).name for f in data.train_files] == [
        f"shard_{n:05d}.parquet" for n in range(3)
    ]
    assert Path(data.val_files[0].path).name == "shard_00004.parquet"
    assert [Path(f.path).exists() for f in data.train_files] == [True, False, False]
    assert not data.corpus_tokens_exact
    assert any("downloading shard_00000" in words for _, _, words in said)
    verify(data, deep=True)


def test_the_rest_arrives_while_training(mirror, tmp_path) -> None:
    """The batches are those of the same files on disk, whether fetched in time or not."""
    data = prepared(tmp_path)
    settings = {"split": "train", "rows": 4, "sequence_len": 64}
    with open_loader(data, **settings) as loader:
        found = [loader.next_batch().sha256 for _ in range(150)]
        assert loader.state_dict()["position"]["epoch"] >= 1
    local = tmp_path / "local"
    local.mkdir()
    for number in (0, 1, 2, 4):
        name = f"shard_{number:05d}.parquet"
        shutil.copyfile(mirror.folder / name, local / name)
    same = prepared(tmp_path, DataSpec(source="parquet", path=str(local)))
    assert same.identity() == data.identity()
    with open_loader(same, **settings) as loader:
        assert [loader.next_batch().sha256 for _ in range(150)] == found
    verify(data, deep=True)


def test_preparing_again_fetches_nothing(mirror, tmp_path) -> None:
    first = prepared(tmp_path)
    mirror.requests.clear()
    again = prepared(tmp_path)
    assert downloads(mirror) == []
    assert again == first


def test_an_interrupted_download_goes_on(mirror, tmp_path) -> None:
    """The connection breaks within a file; the file arrives whole all the same."""
    content = random.Random(1).randbytes(15_000_000)
    (mirror.folder / "shard_00000.parquet").write_bytes(content)
    file = hub.list_shards(NAME, tmp_path / "corpora")[0]
    mirror.cut_after = 12_000_000
    reported: list[int] = []
    hub.fetch(file, reported.append)
    assert Path(file.path).read_bytes() == content
    begun_at = [r for verb, _, r in mirror.requests if verb == "GET"][1:]
    assert begun_at == [None, "bytes=10000000-"] or len(begun_at) == 2
    assert begun_at[1] is not None
    assert reported[-1] == 15_000_000


def test_auto_takes_what_the_run_needs(mirror, tmp_path) -> None:
    spec = DataSpec(source="hf", name=NAME, max_shards="auto")
    assert len(prepared(tmp_path, spec).train_files) == 2
    mirror.requests.clear()


def test_extending_keeps_the_revision(mirror, tmp_path) -> None:
    data = prepared(tmp_path)
    mirror.requests.clear()
    more = prepared(tmp_path, SPEC.model_copy(update={"max_shards": 4}), previous=data)
    assert [f.sha256 for f in more.train_files[:3]] == [f.sha256 for f in data.train_files]
    assert len(more.train_files) == 4
    assert f"/api/datasets/{NAME}/revision/{'a' * 40}" in [path for _, path, _ in mirror.requests]


def test_an_unknown_name(mirror, tmp_path) -> None:
    with pytest.raises(DataError, match="has no data set 'someone/else'") as caught:
        prepared(tmp_path, DataSpec(source="hf", name="someone/else"))
    assert caught.value.code == "dataset_not_found"


def test_no_network(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    began = time.monotonic()
    with pytest.raises(DataError, match="cannot fetch 'someone/words'") as caught:
        prepared(tmp_path)
    assert caught.value.code == "download_failed"
    assert time.monotonic() - began < 60


def test_without_a_network_what_was_listed_before_will_do(mirror, tmp_path, monkeypatch) -> None:
    first = prepared(tmp_path)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    again = prepared(tmp_path)
    assert again.identity() == first.identity()
    assert "taken is what it listed before" in again.notes[0]


def _take(loader: Loader, number: int) -> None:
    for _ in range(number):
        loader.next_batch(timeout=0.3)


def test_waiting_for_a_download_can_be_given_up(mirror, tmp_path, monkeypatch) -> None:
    """The loop may look up while it waits, and closing does not wait for the network."""
    data = prepared(tmp_path)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with open_loader(data, split="train", rows=8, sequence_len=128) as loader:
        began = time.monotonic()
        with pytest.raises(TimeoutError):
            _take(loader, 1000)
        with pytest.raises(TimeoutError):
            loader.next_batch(timeout=0.1)
    assert time.monotonic() - began < 20


def test_a_file_that_arrives_damaged_is_thrown_away(mirror, tmp_path) -> None:
    listed = hub.list_shards(NAME, tmp_path / "corpora")
    wrong = listed[0].model_copy(update={"sha256": "0" * 64})
    with pytest.raises(DataError, match="did not arrive as the hub describes it"):
        hub.fetch(wrong)
    assert not Path(wrong.path).exists()


def test_a_data_set_with_one_file(mirror, tmp_path) -> None:
    for number in range(1, 5):
        (mirror.folder / f"shard_{number:05d}.parquet").unlink()
    with pytest.raises(DataError, match="has 1 parquet files; at least two") as caught:
        prepared(tmp_path)
    assert caught.value.code == "no_validation_file"
