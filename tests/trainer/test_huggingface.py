"""The exported folder gives the same logits and the same tokens, without our code."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.reference import fixture
from tests.trainer.shapes import KINDS, Kind, batches, trained_model
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


def test_logits_and_samples_are_the_trainers(tmp_path: Path) -> None:
    """In a process that cannot import the trainer."""
    model = export(tmp_path)
    prompt = torch.tensor([fixture.reference()["prompt_ids"]])
    program = (
        "import sys, torch; sys.path.insert(0, sys.argv[1]); import modeling_traind as m; "
        "model = m.load(sys.argv[1]); tokens = torch.load(sys.argv[2], weights_only=True); "
        "torch.save((model(tokens), model.generate(tokens, 5)), sys.argv[3]); "
        "assert 'trainer' not in sys.modules"
    )
    torch.save(prompt, tmp_path / "in.pt")
    arguments = [str(tmp_path), str(tmp_path / "in.pt"), str(tmp_path / "out.pt")]
    subprocess.run([sys.executable, "-I", "-c", program, *arguments], check=True, timeout=100)
    logits, more = torch.load(tmp_path / "out.pt", weights_only=True)
    with torch.no_grad():
        torch.testing.assert_close(logits, model(prompt), atol=1e-5, rtol=0)
        assert more[0, prompt.size(1)] == model(prompt)[0, -1].argmax()


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
def test_every_kind_of_model(kind: Kind, tmp_path: Path) -> None:
    from trainer.interop import modeling_traind

    model = trained_model(kind)
    export_huggingface(tmp_path, model.state_dict(), model.shape, fixture.tokenizer())
    tokens = batches(kind, 1)[0][0]
    with torch.no_grad():
        exported = modeling_traind.load(tmp_path)(tokens)
        torch.testing.assert_close(exported, model(tokens), atol=1e-5, rtol=0)


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
