"""A model of nanochat v2: logits, a greedy sample and CORE as nanochat itself evaluates them."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from trainer.contract.recipe import RECIPES
from trainer.contract.shape import ModelShape
from trainer.data import tokenizer as tokenizers
from trainer.evaluate import core, core_bundle, samples
from trainer.model.gpt import GPT

ROOT = Path(__file__).parents[2] / "fixtures" / "nanochat-2026-09-d4"
SHAPE = ModelShape(4, 64, 4, 4, 16, 128, 768, "SSSL", RECIPES["2026-09"].architecture)


@cache
def model(step: int) -> GPT:
    (path,) = ROOT.rglob(f"model_{step:06d}.pt")
    made = GPT(SHAPE, compute_dtype=torch.float32, device="cpu")
    made.load_state_dict(torch.load(path, weights_only=True))
    return made


@cache
def tokenizer() -> tokenizers.Tokenizer:
    return tokenizers.from_nanochat(ROOT / "datasets/stdlib/tokenizer")


def reference(step: int) -> dict[str, Any]:
    return json.loads((ROOT / "reference.json").read_text())[f"at_step_{step}"]


def bundle(max_per_task: int | None) -> core_bundle.Bundle:
    whole = core_bundle.load_bundle(ROOT / "eval_bundle")
    return core_bundle.for_recipe(whole, "2026-09", max_per_task)


@pytest.mark.parametrize("step", [60, 120])
@torch.no_grad()
def test_logits(step: int) -> None:
    prompt = json.loads((ROOT / "reference.json").read_text())["prompt_ids"]
    logits, wanted = model(step)(torch.tensor([prompt]))[0], reference(step)
    assert logits.argmax(-1).tolist() == wanted["argmax"]
    sums = torch.tensor(wanted["logsumexp"])
    torch.testing.assert_close(torch.logsumexp(logits, -1), sums, atol=2e-4, rtol=0)


@pytest.mark.parametrize("step", [60, 120])
def test_greedy_sample(step: int) -> None:
    wanted = reference(step)
    sample = samples.generate(model(step), tokenizer(), "def read(self", max_tokens=16)
    assert sample is not None
    assert f"<|bos|>def read(self{sample.text}" == wanted["greedy16_text"]


@pytest.mark.parametrize("step", [60, 120])
@pytest.mark.parametrize(("cut", "key"), [(None, "core"), (10, "core_max_per_task_10"), (2, None)])
def test_core(step: int, cut: int | None, key: str | None) -> None:
    """With two items a task and more examples than that, as many are shown as there are."""
    wanted = reference(step)[key or "core_max_per_task_2"]
    found = core.evaluate(model(step), tokenizer(), bundle(cut), max_per_task=cut)
    assert found is not None
    assert found.results == pytest.approx(wanted["results"], abs=1e-6)
    assert found.core_metric == pytest.approx(wanted["core_metric"], abs=1e-6)
    assert found.not_scored == {}


def test_a_score_with_fewer_examples_has_another_identity() -> None:
    whole = core_bundle.load_bundle(ROOT / "eval_bundle")
    assert bundle(None) == whole
    assert bundle(2).sha256 != whole.sha256
    assert core_bundle.for_recipe(whole, "2026-07", 2) is whole
