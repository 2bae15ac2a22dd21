"""Greedy with a cache is greedy without one; sampling, limits, streaming."""

from __future__ import annotations

import random

import pytest
import torch

from tests.trainer.evaluate import fixture
from trainer.contract.shape import ModelShape
from trainer.evaluate import samples
from trainer.evaluate.kvcache import Cache
from trainer.evaluate.network import Network

PROMPTS = [
    "def read(self", "import os\n", "class Node:", "for i in range(", "return self.", "# comment",
    "    if not x:", "try:\n    ", "with open(path", "raise ValueError(", "lambda x:", "print(",
    "def __init__(self, name", "assert a == b", "while True:\n", "@property\n",
    "from typing import", "yield from", "é ünïcode 你好", "x = {",
]  # fmt: skip


def test_greedy_equals_the_fixture():
    expected = fixture.reference()["greedy16"]
    prompt = fixture.reference()["greedy_prompt_ids"]
    assert [*prompt, *samples.stream(fixture.model(), prompt, 16)] == expected


@pytest.mark.parametrize("prompt", PROMPTS)
def test_200_cached_tokens_equal_the_forward_without_a_cache(prompt):
    """By induction over causality: each token is the likeliest given all before it, in one forward.

    200 tokens go beyond sequence_len (128), where the window of the long layers shows.
    """
    model, tokenizer = fixture.model(), fixture.tokenizer()
    start = [tokenizer.bos_id, *tokenizer.encode_ordinary(prompt)]
    drawn = list(samples.stream(model, start, 200))
    with torch.no_grad():
        logits = model(torch.tensor([start + drawn]))[0, len(start) - 1 : -1]
    assert logits.argmax(-1).tolist() == drawn


@pytest.mark.parametrize(
    "shape",
    [
        ModelShape(3, 64, 4, 2, 16, 256, 300, "SL"),
        ModelShape(5, 48, 3, 1, 16, 128, 300, "SSSL"),
        ModelShape(4, 64, 4, 4, 16, 16, 300, "L"),
    ],
)
def test_logits_token_by_token_with_windows_and_grouped_queries(shape):
    """Prompts at once, in pieces and singly, across the ends of the windows."""
    model, draw = fixture.random_model(shape), random.Random(2)
    ids = [draw.randrange(shape.vocab_size) for _ in range(330)]
    with torch.no_grad():
        expected = model(torch.tensor([ids]))[0]
    cache, at = Cache(Network(model), capacity=1), 0
    for size in [1, 1, 5, 120, 1, 1, 1, 130, 1, 60, *[1] * 9]:
        at += size
        got = cache.extend(ids[at - size : at])
        torch.testing.assert_close(got, expected[at - 1], atol=2e-5, rtol=1e-5)


def test_a_prompt_too_long_is_cut_at_its_beginning_and_says_so():
    sample = samples.generate(fixture.model(), fixture.tokenizer(), "0 " * 3000, max_tokens=2)
    assert sample is not None
    assert sample.dropped_tokens > 0
    assert len(sample.tokens) == 2


def test_the_same_seed_draws_the_same_and_top_k_1_is_greedy():
    def drawn(**more):
        sample = samples.generate(
            fixture.model(), fixture.tokenizer(), "def f", max_tokens=12, **more
        )
        assert sample is not None
        return sample.tokens

    assert drawn(temperature=1.0, seed=4) == drawn(temperature=1.0, seed=4)
    assert drawn(temperature=1.0, seed=4) != drawn(temperature=1.0, seed=5)
    assert drawn(temperature=1.0, top_k=1, seed=9) == drawn()


def test_streamed_pieces_are_whole_characters_and_join_to_the_text(monkeypatch):
    tokenizer, pieces = fixture.tokenizer(), []
    ids = tokenizer.encode_ordinary("a 你好 b")
    monkeypatch.setattr(samples, "stream", lambda *_, **__: iter(ids))
    sample = samples.generate(
        fixture.model(), tokenizer, "x", max_tokens=99, on_token=pieces.append
    )
    assert sample is not None
    assert "".join(pieces) == sample.text == "a 你好 b"
    assert "你" in pieces


def test_a_new_document_ends_a_sample(monkeypatch):
    bos = fixture.tokenizer().bos_id
    monkeypatch.setattr(samples, "stream", lambda *_, **__: iter([65, bos, 66]))
    sample = samples.generate(fixture.model(), fixture.tokenizer(), "x", max_tokens=9)
    assert sample is not None
    assert (sample.tokens, sample.ended) == ((65,), "document")


def test_stopping_returns_nothing():
    stopped = samples.generate(
        fixture.model(), fixture.tokenizer(), "x", max_tokens=9, should_stop=lambda: True
    )
    assert stopped is None


def test_global_random_numbers_are_left_alone():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    samples.generate(fixture.model(), fixture.tokenizer(), "x", max_tokens=3, temperature=1.0)
    assert torch.equal(torch.get_rng_state(), before)
