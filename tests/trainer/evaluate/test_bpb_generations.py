"""val bpb as nanochat's generations recorded it: rows, streams and byte lengths."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from trainer.contract.recipe import RECIPES, RecipeName
from trainer.contract.shape import ModelShape
from trainer.contract.spec import DataSpec
from trainer.data import tokenizer as tokenizers
from trainer.data.prepare import prepare
from trainer.data.prepared import PreparedData
from trainer.evaluate import span
from trainer.model.gpt import GPT

FIXTURES = Path(__file__).parents[2] / "fixtures"
ONE, TWO = FIXTURES / "nanochat-2026-05-d4", FIXTURES / "nanochat-2026-05-d4-2gpu"
PACKED = FIXTURES / "nanochat-2026-09-d4"
SETTINGS = span.BpbSettings(eval_tokens=8192, rows=4, sequence_len=128)


def text(base: Path, tmp_path: Path) -> PreparedData:
    return prepare(
        DataSpec(source="parquet", path=str(base / "base_data_climbmix")),
        data_dir=tmp_path,
        vocab_size=768,
        tokens_needed=0,
        seed_tokenizer_dir=base / "tokenizer",
    )


def packed(tmp_path: Path) -> PreparedData:
    spec = DataSpec(source="nanochat_packed", path=str(PACKED / "datasets" / "stdlib"))
    return prepare(spec, data_dir=tmp_path, vocab_size=768, tokens_needed=0)


def model(folder: Path, recipe: RecipeName, pattern: str, step: int = 60) -> GPT:
    architecture = RECIPES[recipe].architecture
    shape = ModelShape(4, 64, 4, 4, 16, 128, 768, pattern, architecture)
    made = GPT(shape, compute_dtype=torch.float32, device="cpu")
    path = folder / f"model_{step:06d}.pt"
    state = torch.load(path, weights_only=True, map_location="cpu")
    made.load_state_dict({name.removeprefix("_orig_mod."): w for name, w in state.items()})
    return made


def value(made: GPT, data: PreparedData, settings: span.BpbSettings) -> float:
    tokenizer = tokenizers.load(data.tokenizer_dir)
    measured = span.measure(made, data, tokenizer, settings)
    assert measured is not None
    return measured.result.value


def recorded(base: Path, step: int) -> float:
    reference = json.loads((base / "reference.json").read_text())
    return {e["step"]: e["bpb"] for e in reference["val_bpb"]["extension"]}[step]


@pytest.mark.parametrize("step", [60, 120])
def test_one_process_of_may(tmp_path: Path, step: int) -> None:
    """By the table it was printed with, 6 digits."""
    made = model(ONE / "base_checkpoints" / "d4", "2026-03", "L", step)
    old = replace(SETTINGS, token_bytes="decoded")
    assert value(made, text(ONE, tmp_path), old) == pytest.approx(recorded(ONE, step), abs=1e-6)


def test_both_tables_are_measured_at_once(tmp_path: Path) -> None:
    """Of a text with letters that are several tokens: the older table counts more bytes."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    for number in range(2):
        texts = [f"def f_{i}(x):\n    return 'naïve café — déjà vu' * {i}\n" for i in range(300)]
        pq.write_table(pa.table({"text": texts}), folder / f"shard_{number}.parquet")
    data = prepare(
        DataSpec(source="parquet", path=str(folder)),
        data_dir=tmp_path / "data",
        vocab_size=768,
        tokens_needed=0,
        seed_tokenizer_dir=ONE / "tokenizer",
    )
    made = model(ONE / "base_checkpoints" / "d4", "2026-03", "L")
    tokenizer = tokenizers.load(data.tokenizer_dir)
    settings = replace(SETTINGS, eval_tokens=2048, token_bytes="decoded")
    old = span.measure(made, data, tokenizer, settings)
    raw = span.measure(made, data, tokenizer, replace(settings, token_bytes="raw"))
    assert old is not None
    assert old.other is not None
    assert raw is not None
    assert raw.other is not None
    assert old.result.value < 0.99 * raw.result.value
    for one, other in ((old, raw.other), (raw, old.other)):
        assert one.result.value == pytest.approx(other.result.value, rel=1e-12)
        assert one.result.bytes == other.result.bytes
        assert one.identity == other.identity
        assert one.settings == other.settings
    assert old.identity != raw.identity


@pytest.mark.parametrize("step", [60, 120])
def test_two_processes_of_may(tmp_path: Path, step: int) -> None:
    """Each measures its own half of the row groups: one stream gives another number."""
    made = model(TWO / "base_checkpoints" / "d4", "2026-03", "L", step)
    data = text(TWO, tmp_path)
    two = replace(SETTINGS, token_bytes="decoded", streams=2)
    assert value(made, data, two) == pytest.approx(recorded(TWO, step), abs=1e-6)
    assert value(made, data, replace(two, streams=1)) != pytest.approx(
        recorded(TWO, step), abs=1e-3
    )


@pytest.mark.parametrize(
    ("folder", "step"), [("experiments/first_ladder/d4/base", 60), ("reference", 120)]
)
@pytest.mark.parametrize("rows", [4, 16])
def test_packed_rows_of_september(tmp_path: Path, folder: str, step: int, rows: int) -> None:
    made = model(PACKED / folder, "2026-09", "SSSL", step)
    settings = replace(SETTINGS, rows=rows)
    assert value(made, packed(tmp_path), settings) == pytest.approx(
        recorded(PACKED, step), abs=1e-6
    )


def test_the_identity_follows_streams_table_and_packing(tmp_path: Path) -> None:
    data = text(ONE, tmp_path)
    names = {
        span.identity(data, replace(SETTINGS, **change))
        for change in ({}, {"streams": 2}, {"token_bytes": "decoded"}, {"rows": 8})
    }
    assert len(names) == 4
    rows = packed(tmp_path)
    sizes = {span.identity(rows, replace(SETTINGS, rows=size)) for size in (1, 4, 16)}
    assert len(sizes) == 1  # these rows are the same in batches of any size
    assert span.identity(rows, replace(SETTINGS, eval_tokens=4096)) not in sizes
