"""Small corpora and the nanochat fixture, prepared."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trainer.contract.spec import DataSpec
from trainer.data.prepare import PreparedData, prepare

FIXTURE = Path(__file__).parents[2] / "fixtures" / "nanochat-d4"


@pytest.fixture(scope="session")
def fixture_dir() -> Path:
    return FIXTURE


@pytest.fixture(scope="session")
def nanochat(tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    """The nanochat fixture's corpus with its tokenizer."""
    return prepare(
        DataSpec(source="parquet", path=str(FIXTURE / "base_data_climbmix")),
        data_dir=tmp_path_factory.mktemp("nanochat"),
        vocab_size=768,
        tokens_needed=0,
        seed_tokenizer_dir=FIXTURE / "tokenizer",
    )


def write_shard(path: Path, groups: list[list[str]]) -> Path:
    """A parquet shard with these row groups."""
    schema = pa.schema([("text", pa.string())])
    with pq.ParquetWriter(path, schema) as writer:
        for texts in groups:
            writer.write_table(pa.table({"text": texts}, schema=schema))
    return path


def random_texts(random_source: random.Random, number: int, longest: int = 60) -> list[str]:
    words = ["def ", "return ", "x", " = ", "self.", "\n", "é", "12345", "import os\n"]
    return [
        "".join(random_source.choices(words, k=random_source.randint(0, longest)))
        for _ in range(number)
    ]


@pytest.fixture
def small_corpus(tmp_path: Path) -> Callable[..., PreparedData]:
    """Prepare parquet files given as [file][row group][text]; the last is validation."""

    def make(files: list[list[list[str]]], name: str = "corpus", **options) -> PreparedData:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        for number, groups in enumerate(files):
            write_shard(folder / f"shard_{number:03d}.parquet", groups)
        return prepare(
            DataSpec(source="parquet", path=str(folder)),
            data_dir=tmp_path / "data",
            vocab_size=768,
            tokens_needed=0,
            seed_tokenizer_dir=FIXTURE / "tokenizer",
            **options,
        )

    return make
