"""CORE equals the fixture: scores, prompts, spans, losses; it stops, resumes, survives items."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.trainer.evaluate import fixture
from trainer.contract.shape import ModelShape
from trainer.evaluate import core, core_forward, core_prompts
from trainer.evaluate.core_bundle import Bundle, Task
from trainer.evaluate.core_prompts import Item, ScoredPrompt
from trainer.evaluate.network import Network
from trainer.model.gpt import GPT


@pytest.fixture(autouse=True, params=[1, 3])
def _threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    assert torch.get_num_threads() == request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize(("cut", "key"), [(None, "core"), (10, "core_max_per_task_10")])
def test_every_task_and_core_equal_the_fixture(cut, key):
    result = core.evaluate(fixture.model(), fixture.tokenizer(), fixture.bundle(), max_per_task=cut)
    assert result is not None
    expected = fixture.reference()[key]
    assert result.results == expected["results"]
    assert result.centered_results == expected["centered_results"]
    assert result.core_metric == expected["core_metric"]
    assert result.not_scored == {}


def test_prompts_spans_losses_and_likeliest_tokens_equal_the_fixture():
    result = core.evaluate(fixture.model(), fixture.tokenizer(), fixture.bundle(), details=True)
    assert result is not None
    for label, items in fixture.reference()["core_items"].items():
        for expected in items:
            outcome = result.details[label][expected["item"]]
            assert outcome.item is not None
            assert outcome.scores is not None
            found = [described(prompt) for prompt in outcome.item.prompts]
            assert found == expected["prompts"], (label, expected["item"])
            if "mean_loss" in expected:
                assert outcome.scores.mean_losses == pytest.approx(expected["mean_loss"], abs=1e-5)
            else:
                assert outcome.scores.argmax == [expected["argmax"]]


def described(prompt: ScoredPrompt) -> dict[str, Any]:
    ids = prompt.ids.tolist()
    span = [prompt.start, prompt.end]
    return {"num_tokens": len(ids), "first8": ids[:8], "last8": ids[-8:], "span": span}


# --- shared prefixes -----------------------------------------------------------------------------


def plain_scores(model: GPT, item: Item) -> list[tuple[float, list[int]]]:
    """One prompt at a time through the model's own forward."""
    found = []
    for prompt in item.prompts:
        ids = torch.from_numpy(prompt.ids.astype(np.int64))
        with torch.no_grad():
            logits = model(ids[None])[0, prompt.start - 1 : prompt.end - 1]
        losses = F.cross_entropy(logits, ids[prompt.start : prompt.end], reduction="none")
        found.append((losses.mean().item(), logits.argmax(-1).tolist()))
    return found


SHAPES = [
    ModelShape(4, 64, 4, 4, 16, 128, 768, "L"),
    ModelShape(3, 64, 4, 2, 16, 256, 300, "SL"),  # windows, grouped queries, padded vocabulary
    ModelShape(5, 48, 3, 1, 16, 128, 768, "SSSL"),
]


@pytest.mark.parametrize("shape", SHAPES)
def test_one_pass_over_many_items_equals_one_prompt_at_a_time(shape):
    """Lengths from 2 tokens to far beyond sequence_len and the windows."""
    model, draw = fixture.random_model(shape), random.Random(5)
    items = [random_item(shape, draw) for _ in range(12)]
    scored = core_forward.score(Network(model), [core_forward.tree(item) for item in items])
    for item, scores in zip(items, scored, strict=True):
        expected = plain_scores(model, item)
        assert scores.mean_losses == pytest.approx([loss for loss, _ in expected], abs=1e-4)
        assert scores.argmax == ([best for _, best in expected] if item.gold is None else [])


def random_item(shape: ModelShape, draw: random.Random) -> Item:
    trunk = draw.choice([0, 1, 5, 127, 128, 129, 200, 2 * shape.sequence_len])
    head = [draw.randrange(shape.vocab_size) for _ in range(trunk)]
    prompts = []
    for choice in range(draw.choice([1, 2, 4])):
        length = draw.choice([2, 3, 33, 70])
        tail = [choice, *(draw.randrange(shape.vocab_size) for _ in range(length))]
        ids = np.array(head + tail)
        start = max(1, len(ids) - draw.choice([1, 2, length]))
        prompts.append(ScoredPrompt(ids, start, len(ids)))
    return Item(tuple(prompts), None if len(prompts) == 1 else 0)


def test_equal_losses_take_the_lowest_index():
    item = Item((ScoredPrompt(np.array([1, 2]), 1, 2),) * 2, gold=1)
    assert not core.is_right(item, core_forward.Scores([0.5, 0.5], [[], []]))
    assert core.is_right(replace(item, gold=0), core_forward.Scores([0.5, 0.5], [[], []]))


# --- stopping ------------------------------------------------------------------------------------


def test_a_stopped_evaluation_goes_on_where_it_was(monkeypatch):
    monkeypatch.setattr(core, "BATCH_TOKENS_CPU", 600)
    model, tokenizer, bundle = fixture.model(), fixture.tokenizer(), fixture.bundle()
    whole = core.evaluate(model, tokenizer, bundle, max_per_task=6)
    evaluation, stops, state = core.CoreEvaluation(bundle, 6), 0, None
    while (result := evaluation.run(model, tokenizer, should_stop=after(2))) is None:
        stops += 1
        state = evaluation.state_dict()
        evaluation = core.CoreEvaluation(bundle, 6)
        evaluation.load_state_dict(state)
        assert stops < 100
    assert stops >= 2
    assert whole is not None
    assert result.as_result() == whole.as_result()
    with pytest.raises(ValueError, match="another bundle or max_per_task"):
        core.CoreEvaluation(bundle, 7).load_state_dict(state or {})


def test_stopping_at_once_does_nothing():
    never = core.evaluate(
        fixture.model(), fixture.tokenizer(), fixture.bundle(), should_stop=lambda: True
    )
    assert never is None


def after(batches: int):
    left = iter([False] * batches)
    return lambda: next(left, True)


def test_progress_counts_items():
    seen: list[tuple[int, int]] = []
    core.evaluate(
        fixture.model(), fixture.tokenizer(), fixture.bundle(), max_per_task=2,
        progress=lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    assert seen[-1] == (12, 12)
    assert seen == sorted(seen)


def test_training_is_not_disturbed():
    model = fixture.model().train()
    torch.manual_seed(3)
    random.seed(3)
    before = (torch.get_rng_state(), random.getstate(), [p.clone() for p in model.parameters()])
    core.evaluate(model, fixture.tokenizer(), fixture.bundle(), max_per_task=2)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before[2], strict=True))
    assert model.training
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


# --- items that cannot be scored -----------------------------------------------------------------

GOOD = {"query": "one", "choices": ["two", "three"], "gold": 0}
BAD_ITEMS = [
    (None, "not a JSON object"),
    ([1], "not a JSON object"),
    ({"query": "one", "choices": [], "gold": 0}, "no list of choices"),
    ({"query": "one", "choices": ["a", "b"], "gold": 2}, "gold is not the index"),
    ({"query": "one", "choices": ["a", "b"], "gold": True}, "gold is not the index"),
    ({"query": None, "choices": ["a", "b"], "gold": 0}, "query is not text"),
    ({"query": "one", "choices": ["same", "same"], "gold": 0}, "options do not differ"),
    ({"query": "one", "choices": ["", ""], "gold": 0}, "options do not differ"),
    ({"query": "\ud800", "choices": ["a", "b"], "gold": 0}, "cannot be encoded"),
]


@pytest.mark.parametrize(("bad", "why"), BAD_ITEMS)
def test_an_item_that_cannot_be_scored_is_wrong_and_named(bad, why):
    result = evaluated(task("multiple_choice", [GOOD, bad]))
    assert result.num_items == {"t": 2}
    lost = result.not_scored["t"]
    assert lost["count"] == 1
    assert why in lost["items"][0][1]


def test_too_few_examples_lose_the_whole_task_and_nothing_crashes():
    result = evaluated(task("multiple_choice", [GOOD, GOOD], num_fewshot=2))
    assert result.results == {"t": 0.0}
    assert result.not_scored["t"]["count"] == 2


def test_a_span_cropped_away_is_reported():
    """Ten times sequence_len is kept from the end; a span longer than that has no beginning."""
    long = {"context": "a", "continuation": "0 1" * 2000}
    result = evaluated(task("language_modeling", [long]))
    assert "no token precedes" in result.not_scored["t"]["items"][0][1]


def test_a_continuation_that_merges_with_the_prompt_is_reported():
    class Merging:
        def encode_batch(self, texts, bos=False, threads=None):
            return [np.array([0, len(text)]) for text in texts]

    with pytest.raises(core_prompts.Unscorable, match="not a token prefix"):
        core_prompts.item(
            task("language_modeling", []), [{"context": "a", "continuation": "b"}], 0, Merging(), 99
        )


def test_an_empty_task_scores_nothing():
    assert evaluated(task("schema", [])).results == {"t": 0.0}


def task(kind, items, num_fewshot=0) -> Task:
    return Task("t", kind, num_fewshot, " ", 0.0, tuple(items))


def evaluated(*tasks: Task) -> core.CoreResult:
    result = core.evaluate(fixture.model(), fixture.tokenizer(), Bundle(tasks, "0" * 64))
    assert result is not None
    return result
