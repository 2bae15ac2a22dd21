"""val bpb equals the fixture; what its identity depends on; stopping."""

from __future__ import annotations

import math

import pytest
import torch

from tests.reference.fixture import validation_batches
from tests.trainer.evaluate import fixture
from trainer.evaluate import bpb


def lengths() -> torch.Tensor:
    return torch.from_numpy(fixture.tokenizer().token_bytes.copy())


@pytest.mark.parametrize("step", [60, 120])
def test_it_equals_the_fixture(step):
    count = bpb.plan_span(8192, 4, 128)
    result = bpb.measure(fixture.model(step), validation_batches(count), lengths())
    expected = {e["step"]: e["bpb"] for e in fixture.reference()["val_bpb"]["extension"]}
    assert result is not None
    assert result.value == pytest.approx(expected[step], abs=1e-6)
    assert result.value == result.nats / (math.log(2) * result.bytes)
    assert count == 16


def test_targets_without_bytes_and_ignored_ones_do_not_count():
    inputs, targets = validation_batches(1)[0]
    blanked = targets.clone()
    blanked[:, 64:] = -1
    half = bpb.measure(fixture.model(), [(inputs, blanked)], lengths())
    alone = bpb.measure(fixture.model(), [(inputs[:, :64], targets[:, :64])], lengths())
    assert half is not None
    assert alone is not None
    assert half.value == pytest.approx(alone.value, abs=1e-6)
    assert half.tokens == alone.tokens == int((lengths()[targets[:, :64]] > 0).sum())
    with pytest.raises(ValueError, match="no target token"):
        bpb.measure(fixture.model(), [(inputs, torch.full_like(targets, -1))], lengths())


def test_stopping_between_batches_gives_nothing():
    answers = iter([False, True])
    batches = validation_batches(3)
    assert (
        bpb.measure(fixture.model(), batches, lengths(), should_stop=lambda: next(answers)) is None
    )


def test_identity_follows_everything_but_tokens_that_change_no_batch():
    known = ("v", "t", 8192, 4, 128, "best_fit")
    same = bpb.identity(*known)
    others = [
        ("w", *known[1:]), ("v", "u", *known[2:]), ("v", "t", 4096, 4, 128, "best_fit"),
        ("v", "t", 8192, 8, 128, "best_fit"), ("v", "t", 8192, 4, 64, "best_fit"),
        (*known[:5], "lossless"),
    ]  # fmt: skip
    assert len({same, *(bpb.identity(*other) for other in others)}) == len(others) + 1
    assert bpb.identity("v", "t", 8192 + 511, 4, 128, "best_fit") == same


def test_training_is_not_disturbed():
    model = fixture.model().train()
    torch.manual_seed(3)
    before = torch.get_rng_state()
    bpb.measure(model, validation_batches(1), lengths())
    assert model.training
    assert torch.equal(torch.get_rng_state(), before)
