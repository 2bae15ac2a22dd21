"""Completions of the fixture's model: what an order says is what is told, whole or in pieces."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.trainer.evaluate import fixture
from trainer.contract.completions import CompletionOrder, Done, Logprobs, TextPiece
from trainer.evaluate import completions, samples, text_stream
from trainer.evaluate.completions import Unusable
from trainer.evaluate.network import Network


@cache
def net() -> Network:
    return Network(fixture.model().eval())


def said(**order: Any) -> list[TextPiece | Done | None]:
    asked = CompletionOrder.model_validate(
        {"run_dir": "/", "checkpoint": "c", "temperature": 0.0} | order
    )
    return list(completions.complete(net(), fixture.tokenizer(), asked))


def pieces(**order: Any) -> list[TextPiece]:
    return [one for one in said(**order) if isinstance(one, TextPiece)]


def text(**order: Any) -> str:
    return "".join(piece.text for piece in pieces(**order))


def logprobs(**order: Any) -> Logprobs:
    """All of one choice."""
    told = [piece.logprobs for piece in pieces(**order) if piece.logprobs is not None]
    names = Logprobs.model_fields
    return Logprobs(**{name: [x for one in told for x in getattr(one, name)] for name in names})


def forward(ids: list[int]) -> torch.Tensor:
    """Log-probabilities (T, V) of the model itself, without a cache."""
    with torch.no_grad():
        return net().model(torch.tensor([ids]))[0].float().log_softmax(-1)


def ids_of(prompt: str) -> list[int]:
    return [fixture.tokenizer().bos_id, *fixture.tokenizer().encode_ordinary(prompt)]


@pytest.mark.parametrize("prompt", ["def read(self", "é ünïcode 你好", ""])
def test_greedy_is_the_sample_of_the_run(prompt):
    sample = samples.generate(fixture.model(), fixture.tokenizer(), prompt, max_tokens=60)
    assert sample is not None
    told = pieces(prompts=[prompt], max_tokens=60)
    assert "".join(piece.text for piece in told) == sample.text
    assert [piece.finish_reason for piece in told[:-1]] == [None] * (len(told) - 1)
    assert told[-1].finish_reason == {"length": "length", "document": "stop"}[sample.ended]


def test_drawn_with_a_seed_it_is_the_sample_of_that_seed():
    sample = samples.generate(
        fixture.model(), fixture.tokenizer(), "def f", max_tokens=30,
        temperature=0.8, top_k=20, seed=5,
    )  # fmt: skip
    assert sample is not None
    order: dict[str, Any] = {"max_tokens": 30, "temperature": 0.8, "top_k": 20}
    assert text(prompts=["def f"], seed=5, **order) == sample.text
    second = [p.text for p in pieces(prompts=["def f"], seed=4, n=2, **order) if p.index == 1]
    assert "".join(second) == sample.text


def test_choices_come_in_order_and_prompts_count_once():
    told = said(prompts=["def ", "import "], n=3, max_tokens=4, temperature=1.0)
    indices = [one.index for one in told if isinstance(one, TextPiece)]
    assert indices == sorted(indices)
    assert set(indices) == set(range(6))
    done = told[-1]
    assert isinstance(done, Done)
    assert done.prompt_tokens == len(ids_of("def ")) + len(ids_of("import "))
    assert done.completion_tokens <= 6 * 4


def test_a_text_is_its_ids_after_bos():
    order: dict[str, Any] = {"max_tokens": 20, "logprobs": 0}
    by_text = logprobs(prompts=["for i in"], **order)
    assert logprobs(prompts=[ids_of("for i in")], **order) == by_text
    without = logprobs(prompts=[ids_of("for i in")[1:]], **order)
    assert without.token_logprobs != by_text.token_logprobs


def test_a_prompt_read_in_parts_is_the_prompt_read_whole(monkeypatch):
    prompt = "def f(x):\n    return x\n" * 20
    whole = text(prompts=[prompt], max_tokens=20)
    monkeypatch.setattr(completions, "PROMPT_TOKENS", 7)
    assert text(prompts=[prompt], max_tokens=20) == whole
    nothing = said(prompts=[prompt], max_tokens=1).count(None)
    assert nothing >= len(ids_of(prompt)) / 7  # others had their turn


@pytest.mark.parametrize("length", [1, 2, 5, 9])
def test_a_stop_sequence_ends_the_text_before_it(length):
    """Whatever tokens it lies across, and with nothing of it told before it was whole."""
    full = text(prompts=["def read(self"], max_tokens=60)
    for start in range(0, 30, 3):
        stop = full[start : start + length]
        told = pieces(prompts=["def read(self"], max_tokens=60, stop=["\x00never", stop])
        assert "".join(piece.text for piece in told) == full[: full.index(stop)]
        assert told[-1].finish_reason == "stop"


def test_a_stop_sequence_in_the_prompt_or_never_whole_stops_nothing():
    full = text(prompts=["def read(self"], max_tokens=20)
    stops = ["read(", full[-3:] + "\x00"]
    assert text(prompts=["def read(self"], max_tokens=20, stop=stops) == full
    echoed = text(prompts=["def read(self"], max_tokens=20, stop=["read("], echo=True)
    assert echoed == "def read(self" + full


def test_pieces_are_whole_characters():
    """Bytes drawn one by one: what is no character yet is held back, the rest in the end U+FFFD."""
    tokenizer = fixture.tokenizer()
    wanted = "é你".encode()
    bias = {tokenizer.tokens.index(wanted[0:1]): 100.0}
    told = pieces(prompts=[""], max_tokens=1, logit_bias=bias, logprobs=0)
    assert [piece.text for piece in told] == ["�"]
    assert told[0].logprobs is not None
    assert told[0].logprobs.tokens == ["bytes:\\xc3"]

    text_ = text_stream.TextStream(tokenizer, [], with_scores=True)
    text_.begin()
    taken = []
    for byte in wanted:
        text_.add(tokenizer.tokens.index(bytes([byte])), text_stream.Score(-1.0, {}))
        taken.append(text_.take()[0])
    assert taken == ["", "é", "", "", "你"]


def test_log_probabilities_are_those_of_the_model_without_a_cache():
    ids = ids_of("class Node:")
    told = logprobs(prompts=["class Node:"], max_tokens=12, echo=True, logprobs=3)
    drawn = ids[1:] + [
        int(i) for i in samples.stream(fixture.model(), ids, len(told.tokens) - len(ids) + 1)
    ]
    expected = forward([ids[0], *drawn])
    for at, token in enumerate(drawn):
        assert told.token_logprobs[at] == pytest.approx(float(expected[at, token]), abs=1e-4)
        best = expected[at].topk(3)
        top = told.top_logprobs[at]
        assert top is not None
        assert sorted(top.values())[-3:] == pytest.approx(best.values.tolist()[::-1], abs=1e-4)
        assert 3 <= len(top) <= 4
    whole = text(prompts=["class Node:"], max_tokens=12, echo=True)
    assert "".join(told.tokens) == whole
    assert told.text_offset == [len("".join(told.tokens[:n])) for n in range(len(told.tokens))]


def test_scoring_a_text_draws_nothing():
    """echo without new tokens, as evaluations ask for it. Given ids begin with what has no odds."""
    ids = ids_of("import os\n")
    told = said(prompts=[ids], max_tokens=0, echo=True, logprobs=0)
    done = told[-1]
    assert isinstance(done, Done)
    assert done.completion_tokens == 0
    scored = logprobs(prompts=[ids], max_tokens=0, echo=True, logprobs=0)
    assert (scored.token_logprobs[0], scored.top_logprobs[0]) == (None, None)
    expected = forward(ids)[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
    assert scored.token_logprobs[1:] == pytest.approx(expected.tolist(), abs=1e-4)
    assert text(prompts=["x"], max_tokens=0) == ""


def test_the_end_of_the_document_has_its_probability_and_no_text():
    """So an evaluation that asks for one token more than the prompt always gets one more."""
    bos = fixture.tokenizer().bos_id
    ask: dict[str, Any] = {"prompts": [ids_of("def ")], "max_tokens": 1, "echo": True}
    ended = logprobs(**ask, logprobs=1, logit_bias={bos: 100.0})
    assert ended.tokens[-1] == "<|bos|>"
    assert ended.text_offset[-1] == len(text(**ask, logit_bias={bos: 100.0}))
    assert len(ended.tokens) == len(ids_of("def ")) + 1 == len(logprobs(**ask, logprobs=1).tokens)
    assert pieces(**ask, logit_bias={bos: 100.0})[-1].finish_reason == "stop"
    done = said(**ask, logit_bias={bos: 100.0})[-1]
    assert isinstance(done, Done)
    assert done.completion_tokens == 1


def test_a_long_prompt_is_echoed_in_parts():
    ids = ids_of("def f(x):\n    return x\n" * 60)
    told = pieces(prompts=[ids], max_tokens=0, echo=True, logprobs=1)
    assert len(told) > len(ids) / completions.ECHOED_TOKENS
    assert all(
        piece.logprobs is not None and len(piece.logprobs.tokens) <= completions.ECHOED_TOKENS
        for piece in told
    )
    assert "".join(piece.text for piece in told) == fixture.tokenizer().decode(ids)


@given(st.lists(st.integers(0, 255) | st.sampled_from(list("aé你🎉".encode())), max_size=40))
@settings(max_examples=300, deadline=None)
def test_offsets_are_where_the_text_of_a_token_begins(spelled):
    """Of tokens of one byte each, whole characters and broken ones: what lies between two offsets
    is what the bytes between them say."""
    tokenizer = fixture.tokenizer()
    text_ = text_stream.TextStream(tokenizer, [], with_scores=True)
    text_.begin()
    told, offsets = "", []
    for byte in spelled:
        text_.add(tokenizer.tokens.index(bytes([byte])), text_stream.Score(-1.0, {}))
        piece, scores = text_.take()
        assert scores is not None
        told, offsets = told + piece, offsets + scores.text_offset
    piece, scores = text_.finish()
    assert scores is not None
    told, offsets = told + piece, offsets + scores.text_offset
    assert told == bytes(spelled).decode(errors="replace")
    assert len(offsets) == len(spelled)
    assert offsets == sorted(offsets)
    for at, byte in enumerate(spelled):
        if byte < 0x80:
            assert told[offsets[at]] == chr(byte)


def test_penalties_and_bias_change_what_is_drawn():
    plain = samples.generate(fixture.model(), fixture.tokenizer(), "x = ", max_tokens=40)
    assert plain is not None
    assert len(set(plain.tokens)) < len(plain.tokens)  # it repeats itself
    told = logprobs(prompts=["x = "], max_tokens=40, presence_penalty=2.0, frequency_penalty=2.0,
                    logit_bias={fixture.tokenizer().bos_id: -100.0}, logprobs=0)  # fmt: skip
    assert len(set(told.tokens)) > len(set(plain.tokens))
    first = plain.tokens[0]
    forbidden = text(prompts=["x = "], max_tokens=1, logit_bias={first: -100.0})
    assert forbidden != fixture.tokenizer().decode([first])


@pytest.mark.parametrize(
    ("order", "param"),
    [
        ({"prompts": [[768]]}, "prompt"),
        ({"prompts": ["fine", [0, 10**9]]}, "prompt"),
        ({"prompts": ["x"], "max_tokens": 1280}, "prompt"),
        ({"prompts": ["x"], "logit_bias": {768: 1.0}}, "logit_bias"),
    ],
)
def test_what_the_model_cannot_follow_is_refused_before_a_word(order, param):
    asked = CompletionOrder.model_validate({"run_dir": "/", "checkpoint": "c"} | order)
    told = completions.complete(net(), fixture.tokenizer(), asked)
    with pytest.raises(Unusable) as refused:
        next(told)
    assert refused.value.param == param


def test_the_longest_order_is_followed():
    prompt = ids_of("a " * 2000)[: 1280 - 3]
    assert isinstance(said(prompts=[prompt], max_tokens=3)[-1], Done)


def test_every_token_has_its_probability_and_none_is_told_of_a_cut_text():
    full = logprobs(prompts=["def "], max_tokens=30, logprobs=0)
    cut = logprobs(prompts=["def "], max_tokens=30, logprobs=0, stop=["".join(full.tokens[4:6])])
    assert cut.tokens == full.tokens[: len(cut.tokens)]
    assert 0 < len(cut.tokens) <= 4
    assert all(math.exp(p) <= 1 for p in full.token_logprobs if p is not None)
