"""A data set by name: the real downloader against a mirror on loopback."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.trainer.data.conftest import FIXTURE, random_texts, write_shard
from tests.trainer.data.mirror import Mirror, serving
from trainer.contract.spec import DataSpec
from trainer.data import hub
from trainer.data.errors import DataError
from trainer.data.loader import Loader, open_loader
from trainer.data.parquet import TextFile
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
    file = hub.list_shards(NAME, tmp_path / "corpora").files[0]
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
    assert "using its last known listing" in again.notes[0]


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
    listed = hub.list_shards(NAME, tmp_path / "corpora").files
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


# --- splits, configs, refusals -------------------------------------------------------------------


def layout(mirror: Mirror, *names: str) -> None:
    """The data set is these files, whose documents begin with the file's name."""
    for path in mirror.folder.glob("*"):
        path.unlink()
    for name in names:
        path = mirror.folder / f"{name}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_shard(path, [[f"{name} {n} words" for n in range(30)]])


def names_of(data: PreparedData) -> tuple[list[str], list[str]]:
    return tuple(  # pyright: ignore[reportReturnType] - two of them
        [file.remote.name.removesuffix(".parquet") for file in files if file.remote]
        for files in (data.train_files, data.val_files)
    )


def test_splits_of_the_hub_are_known_by_their_names(mirror, tmp_path) -> None:
    layout(mirror, "data/test-0", "data/train-0", "data/train-1", "data/validation-0")
    data = prepared(tmp_path, DataSpec(source="hf", name=NAME))
    assert names_of(data) == (["data/train-0", "data/train-1"], ["data/validation-0"])
    assert [(e.reason, e.count) for e in data.left_out] == [("other_split", 1)]
    assert "data/train-0 trains" not in data.split_rule
    assert data.split_rule == "splits by name: train trains, validation validates"


def test_a_train_and_a_test_file_are_enough(mirror, tmp_path) -> None:
    layout(mirror, "test-00000-of-00001", "train-00000-of-00001")
    data = prepared(tmp_path, DataSpec(source="hf", name=NAME))
    assert names_of(data) == (["train-00000-of-00001"], ["test-00000-of-00001"])
    assert any("its test split is used for validation" in note for note in data.notes)


@pytest.mark.parametrize("with_card", [True, False])
def test_configs_of_the_hub_are_asked_for(with_card, mirror, tmp_path) -> None:
    layout(mirror, "en/train-0", "en/test-0", "de/train-0", "de/test-0")
    if with_card:
        mirror.card = {
            "configs": [
                {"config_name": name, "data_files": [
                    {"split": "train", "path": f"{name}/train-*"},
                    {"split": "test", "path": [f"{name}/test-*"]},
                ]}
                for name in ("en", "de")
            ]
        }  # fmt: skip
    with pytest.raises(DataError, match=r"2 configs: .* data\.config") as caught:
        prepared(tmp_path, DataSpec(source="hf", name=NAME))
    assert caught.value.code == "config_needed"
    data = prepared(tmp_path, DataSpec(source="hf", name=NAME, config="de"))
    assert names_of(data) == (["de/train-0"], ["de/test-0"])
    with pytest.raises(DataError, match="no config 'fr'; it has"):
        prepared(tmp_path, DataSpec(source="hf", name=NAME, config="fr"))


def test_the_cards_default_config_is_taken_and_shown(mirror, tmp_path) -> None:
    layout(mirror, "all/0", "all/1", "sample/0", "sample/1")
    mirror.card = {
        "configs": [
            {"config_name": "default", "data_files": [{"split": "train", "path": "all/*"}]},
            {"config_name": "sample", "data_files": [{"split": "train", "path": "sample/*"}]},
        ]
    }
    data = prepared(tmp_path, DataSpec(source="hf", name=NAME))
    assert names_of(data) == (["all/0"], ["all/1"])
    assert any("2 configs: using its default" in note for note in data.notes)
    again = prepared(tmp_path, DataSpec(source="hf", name=NAME, config="sample"))
    assert names_of(again) == (["sample/0"], ["sample/1"])


def test_splits_of_the_hub_can_be_named(mirror, tmp_path) -> None:
    layout(mirror, "data/en-00000-of-00001", "data/fr-00000-of-00002", "data/fr-00001-of-00002")
    with pytest.raises(DataError, match=r"2 splits: .* data\.split") as caught:
        prepared(tmp_path, DataSpec(source="hf", name=NAME))
    assert caught.value.code == "split_needed"
    data = prepared(tmp_path, DataSpec(source="hf", name=NAME, split="fr"))
    assert names_of(data) == (["data/fr-00000-of-00002"], ["data/fr-00001-of-00002"])


def test_a_column_of_the_hub_can_be_named(mirror, tmp_path) -> None:
    layout(mirror, "train-0", "train-1", "test-0")
    for path in mirror.folder.iterdir():
        texts = TextFile(path).texts(0)
        pq.write_table(pa.table({"body": texts}), path)
    with pytest.raises(DataError, match=r"no column 'text' \(it has: body\)"):
        prepared(tmp_path, DataSpec(source="hf", name=NAME))
    data = prepared(tmp_path, DataSpec(source="hf", name=NAME, column="body"))
    with open_loader(data, split="train", rows=2, sequence_len=64) as loader:
        for _ in range(20):
            loader.next_batch()


def test_shards_of_the_hub_without_rows_are_left_out(mirror, tmp_path) -> None:
    layout(mirror, "a", "b", "c", "d", "e")
    for name in ("a", "e"):
        write_shard(mirror.folder / f"{name}.parquet", [])
    data = prepared(tmp_path, DataSpec(source="hf", name=NAME, max_shards=3))
    assert names_of(data) == (["b", "c"], ["d"])
    assert [(e.reason, e.count) for e in data.left_out] == [("no_rows", 2)]


REFUSALS = {
    "gated": (
        (403, {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access to dataset someone/words "
               "is restricted and you are not in the authorized list."}),
        "dataset_gated",
        ["not in the authorized list", "https://huggingface.co/datasets/someone/words", "HF_TOKEN"],
    ),
    "gated, not logged in": (
        (401, {"X-Error-Code": "GatedRepo", "X-Error-Message": "You must be authenticated"}),
        "dataset_gated",
        ["You must be authenticated", "hf auth login"],
    ),
    "expired token": (
        (401, {"X-Error-Message": "User Access Token \"mine\" is expired"}),
        "download_failed",
        ["is expired"],
    ),
    "invalid token": (
        (401, {"X-Error-Message": "Invalid credentials in Authorization header"}),
        "download_failed",
        ["Invalid credentials in Authorization header"],
    ),
    "forbidden": (
        (403, {"X-Error-Message": "your plan does not include this"}),
        "download_failed",
        ["your plan does not include this", "permissions"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSALS)
def test_the_hubs_refusals_keep_their_reason(case, mirror, tmp_path) -> None:
    refusal, code, words = REFUSALS[case]
    mirror.refusal = refusal
    with pytest.raises(DataError) as caught:
        prepared(tmp_path)
    assert caught.value.code == code
    for said in words:
        assert said in caught.value.message
    assert "\n" not in caught.value.message


def test_a_refusal_while_a_shard_is_fetched_keeps_its_reason(mirror, tmp_path) -> None:
    file = hub.list_shards(NAME, tmp_path / "corpora").files[0]
    mirror.refusal = REFUSALS["gated"][0]
    with pytest.raises(DataError, match="not in the authorized list") as caught:
        hub.fetch(file)
    assert caught.value.code == "dataset_gated"


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("HTTP_PROXY", "nonsense://x", "nonsense"),
        ("ALL_PROXY", "socks5://127.0.0.1:1", "socks"),
    ],
)
def test_a_proxy_that_cannot_be_used_is_named(variable, value, words, mirror, tmp_path) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom trainer.data import hub\n"
        "from trainer.data.errors import DataError\n"
        f"try:\n    hub.list_shards({NAME!r}, Path(sys.argv[1]))\n"
        "except DataError as error:\n    print(error.code, error.message)\n"
    )
    environment = {**os.environ, variable: value, "HF_ENDPOINT": mirror.endpoint}
    for name in ("NO_PROXY", "no_proxy"):
        environment.pop(name, None)
    answer = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        env=environment, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert answer.stdout.startswith("download_failed "), answer.stderr
    assert words in answer.stdout.lower()
