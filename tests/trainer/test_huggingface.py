"""The exported folder gives the same logits and the same tokens, without our code."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.reference import fixture
from tests.trainer.shapes import KINDS, Kind, batches, trained_model
from trainer.contract.recipe import RECIPES
from trainer.interop.huggingface import export_huggingface
from trainer.interop.nanochat import read_nanochat
from trainer.model.gpt import GPT

TEXTS = [
    "def f(x):\n\treturn x ** 2\n\n\n# a comment",
    "  1234567 'll we've I'M they'RE",
    "你好 🌍 été\r\n\r\nline   \n",
    "<|bos|> is no token here, nor is\x00this",
    "word" * 50 + " \t \n x",
]


def export(folder: Path) -> GPT:
    run = read_nanochat(fixture.BASE, "d4", 60)
    model = GPT(run.shape, compute_dtype=torch.float32, device="cpu")
    model.load_state_dict(run.model)
    export_huggingface(folder, model.state_dict(), run.shape, fixture.tokenizer(), name="d4")
    return model


PROGRAM = """
import sys, torch
sys.path.insert(0, sys.argv[1])
import modeling_traind
model = modeling_traind.load(sys.argv[1])
tokens = torch.load(sys.argv[2], weights_only=True)
cache, pieces = model.cache(), tokens.split([1, 1, 5, tokens.size(1) - 8, 1], dim=1)
cached = torch.cat([model(piece, cache) for piece in pieces], dim=1)
torch.save((model(tokens), cached, model.generate(tokens, 5)), sys.argv[3])
assert "trainer" not in sys.modules
"""


def exported(folder: Path, tokens: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """(logits, logits piece by piece with a cache, five tokens more) in a process that cannot
    import the trainer."""
    torch.save(tokens, folder / "in.pt")
    arguments = [str(folder), str(folder / "in.pt"), str(folder / "out.pt")]
    command = [sys.executable, "-I", "-c", PROGRAM, *arguments]
    subprocess.run(command, check=True, timeout=100, cwd=folder)
    return torch.load(folder / "out.pt", weights_only=True)


def test_logits_and_samples_are_the_trainers(tmp_path: Path) -> None:
    model = export(tmp_path)
    prompt = torch.tensor([fixture.reference()["prompt_ids"]])
    logits, cached, more = exported(tmp_path, prompt)
    with torch.no_grad():
        torch.testing.assert_close(logits, model(prompt), atol=1e-5, rtol=0)
        torch.testing.assert_close(cached, logits, atol=1e-5, rtol=0)
        assert more[0, prompt.size(1)] == model(prompt)[0, -1].argmax()


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_with_and_without_a_cache(recipe: str, tmp_path: Path) -> None:
    """The logits are the trainer's; tokens that are generated are the likeliest of whole passes."""
    kind = Kind(sequence_len=300, aspect_ratio=8, n_kv_head=1, window_pattern="SSL", recipe=recipe)
    model = trained_model(kind)
    export_huggingface(tmp_path, model.state_dict(), model.shape, fixture.tokenizer())
    tokens = batches(kind, 1)[0][0]
    logits, cached, more = exported(tmp_path, tokens)
    with torch.no_grad():
        torch.testing.assert_close(logits, model(tokens), atol=1e-5, rtol=0)
        torch.testing.assert_close(cached, logits, atol=1e-5, rtol=0)
        assert torch.equal(model(more[:, :-1])[:, -5:].argmax(-1), more[:, -5:])


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
def test_every_kind_of_model(kind: Kind, tmp_path: Path) -> None:
    model = trained_model(kind)
    export_huggingface(tmp_path, model.state_dict(), model.shape, fixture.tokenizer())
    alone = runpy.run_path(str(tmp_path / "modeling_traind.py"))["load"](tmp_path)
    tokens = batches(kind, 1)[0][0]
    with torch.no_grad():
        torch.testing.assert_close(alone(tokens), model(tokens), atol=1e-5, rtol=0)


def test_bfloat16_exports_compute_in_it(tmp_path: Path) -> None:
    """As the trainer does: float32 lambdas change no dtype."""
    model = trained_model(KINDS["grouped queries"], torch.bfloat16)
    export_huggingface(tmp_path, model.state_dict(), model.shape, fixture.tokenizer())
    tokens = batches(KINDS["grouped queries"], 1)[0][0]
    logits, cached, _ = exported(tmp_path, tokens)
    with torch.no_grad():
        expected = model(tokens)
    for found in (logits, cached):  # masks and fused kernels round differently
        assert (found - expected).abs().mean() < 2.0**-8 * expected.abs().max()


def test_tokens_are_the_trainers(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is not installed")
    export(tmp_path)
    exported = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    ours = fixture.tokenizer()
    for text in TEXTS[:3] + TEXTS[4:]:
        ids = exported.encode(text).ids
        assert ids == ours.encode_ordinary(text), text
        assert exported.decode(ids) == text
    for text, ids in fixture.reference()["sample_encode"].items():
        assert exported.encode(text).ids == ids
    assert exported.token_to_id("<|bos|>") == ours.bos_id
    assert exported.get_vocab_size() == ours.vocab_size
