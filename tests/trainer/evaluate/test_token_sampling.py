"""Which token comes next: the laws of temperature, top_k, top_p, penalties and bias."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.evaluate.token_sampling import Rules, choose

LOGITS = torch.tensor([0.1, 2.0, -1.0, 1.5, 1.9])


def drawn(rules: Rules, times: int = 400, before: dict[int, int] | None = None) -> Counter[int]:
    randomness = torch.Generator().manual_seed(1)
    return Counter(choose(LOGITS, rules, before or {}, randomness) for _ in range(times))


def test_temperature_0_takes_the_likeliest():
    assert drawn(Rules()) == {1: 400}
    assert drawn(Rules(top_p=0.5, top_k=3)) == {1: 400}


@pytest.mark.parametrize("temperature", [1e-320, 1e-40, 1e-7])
def test_a_temperature_as_good_as_0_is_0(temperature):
    assert drawn(Rules(temperature)) == {1: 400}
    assert drawn(Rules(1e-5)) == {1: 400}


def test_frequencies_are_the_probabilities():
    found = drawn(Rules(temperature=0.7), times=4000)
    for token, chance in enumerate((LOGITS / 0.7).softmax(-1).tolist()):
        assert found[token] / 4000 == pytest.approx(chance, abs=0.03)


@given(st.integers(1, 7), st.floats(0.01, 1.0), st.floats(0.1, 3.0))
@settings(max_examples=60, deadline=None)
def test_only_the_fewest_that_are_likely_enough_together(top_k, top_p, temperature):
    found = drawn(Rules(temperature, top_k, top_p), times=60)
    chances = (LOGITS / temperature).softmax(-1)
    order = chances.argsort(descending=True).tolist()[:top_k]
    kept = chances[order] / chances[order].sum()
    fewest = int((kept.cumsum(0) < top_p - 1e-5).sum()) + 1
    assert set(found) <= set(order[:fewest])


def test_penalties_weigh_how_often_a_token_came():
    assert drawn(Rules(presence_penalty=0.2), before={1: 1}) == {4: 400}
    assert drawn(Rules(presence_penalty=0.05), before={1: 9}) == {1: 400}
    assert drawn(Rules(frequency_penalty=0.05), before={1: 9}) == {4: 400}
    assert drawn(Rules(frequency_penalty=-1), before={2: 4}) == {2: 400}


def test_bias_moves_one_token_and_leaves_the_logits_alone():
    kept = LOGITS.clone()
    assert drawn(Rules(bias={2: 100.0})) == {2: 400}
    assert 1 not in drawn(Rules(temperature=1.0, bias={1: -100.0}))
    assert torch.equal(LOGITS, kept)
