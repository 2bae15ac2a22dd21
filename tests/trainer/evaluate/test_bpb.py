"""val bpb equals the fixture; what its identity depends on; stopping."""

from __future__ import annotations

import math
from typing import Any

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


def test_identity_follows_everything_a_value_depends_on():
    known: dict[str, Any] = {
        "val_identity": "v", "tokenizer_sha256": "t", "batches": 16, "rows": 4,
        "sequence_len": 128, "packing": "best_fit",
    }  # fmt: skip
    changes: list[dict[str, Any]] = [
        {"val_identity": "w"}, {"tokenizer_sha256": "u"}, {"batches": 8}, {"rows": 8},
        {"sequence_len": 64}, {"packing": "lossless"}, {"streams": 2}, {"token_bytes": "decoded"},
    ]  # fmt: skip
    same = bpb.identity(**known)
    others = [bpb.identity(**{**known, **change}) for change in changes]
    assert len({same, *others}) == len(others) + 1
    assert bpb.identity(**known, streams=1, token_bytes="raw") == same
    # what runs of before have in their rows: values recorded then stay comparable
    assert same == "fad2d69a4129f9be29f41d0ade986aa67404a4002cad7b2e52b726701bf224c9"


def test_a_span_is_shared_by_the_streams():
    assert bpb.plan_span(8192, 4, 128) == bpb.plan_span(8192 + 511, 4, 128) == 16
    assert bpb.plan_span(8192, 4, 128, streams=2) == 16
    assert bpb.plan_span(8192 + 512, 4, 128, streams=2) == 16  # no half round
    assert bpb.plan_span(1, 4, 128, streams=3) == 3


def test_training_is_not_disturbed():
    model = fixture.model().train()
    torch.manual_seed(3)
    before = torch.get_rng_state()
    bpb.measure(model, validation_batches(1), lengths())
    assert model.training
    assert torch.equal(torch.get_rng_state(), before)
