"""The model equals the plain reference, starts as the recipe says and keeps nanochat's names."""

from __future__ import annotations

import math

import pytest
import torch

from tests.reference.model import PlainGPT
from tests.trainer.shapes import KINDS, VOCAB, Kind, batches, trained_model
from trainer.contract.shape import count_parameters
from trainer.model.gpt import GPT


def plain_twin(model: GPT) -> PlainGPT:
    plain = PlainGPT(model.shape, model.compute_dtype)
    plain.load_state_dict(model.state_dict())
    return plain


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
@torch.no_grad()
def test_logits_and_losses_equal_the_reference(kind: Kind) -> None:
    model = trained_model(kind)
    plain = plain_twin(model)
    tokens, targets = batches(kind, 1)[0]
    logits = model(tokens)
    assert logits.shape == (*tokens.shape, VOCAB)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, plain(tokens), atol=1e-5, rtol=0)
    for reduction in ("mean", "sum"):
        ours, theirs = (m.loss(tokens, targets, reduction) for m in (model, plain))
        assert ours.item() == pytest.approx(theirs.item(), rel=2e-7)
    each = plain.loss(tokens, targets, "none").view_as(targets)
    torch.testing.assert_close(model.loss(tokens, targets, "none"), each, atol=3e-6, rtol=0)


@torch.no_grad()
def test_a_prompt_may_be_longer_than_the_training_rows() -> None:
    kind = KINDS["windows"]
    model = trained_model(kind)
    tokens = torch.arange(kind.sequence_len + 77)[None] % VOCAB
    torch.testing.assert_close(model(tokens), plain_twin(model)(tokens), atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_window_hides_what_is_further_back() -> None:
    """One S layer and one L layer: only the S layer's attention is changed by the pattern."""
    kind = Kind(depth=2, aspect_ratio=16, sequence_len=512, window_pattern="SL")
    model = trained_model(kind)
    assert model.shape.windows == (128, 512)
    all_long = GPT(
        Kind(depth=2, aspect_ratio=16, sequence_len=512).plan()[0],
        compute_dtype=torch.float32,
        device="cpu",
    )
    all_long.load_state_dict(model.state_dict())
    tokens = batches(kind, 1)[0][0]
    windowed, full = model(tokens), all_long(tokens)
    # position 128 still sees key 0 through a window of 128; position 129 does not
    torch.testing.assert_close(windowed[:, :129], full[:, :129], atol=1e-5, rtol=0)
    assert (windowed[:, 129:] - full[:, 129:]).abs().max() > 1e-4


@torch.no_grad()
def test_positions_do_not_see_the_future() -> None:
    kind = KINDS["grouped queries"]
    model = trained_model(kind)
    tokens = batches(kind, 1)[0][0]
    changed = tokens.clone()
    changed[:, 40:] = (changed[:, 40:] + 1) % VOCAB
    torch.testing.assert_close(model(tokens)[:, :40], model(changed)[:, :40], atol=0, rtol=0)


def test_state_has_the_counted_parameters_and_survives_a_round_trip() -> None:
    kind = KINDS["one kv head for three"]
    model = trained_model(kind)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    assert sum(v.numel() for v in state.values()) == count_parameters(model.shape).total
    assert state.keys() == PlainGPT(model.shape).state_dict().keys()
    other = GPT(model.shape, compute_dtype=torch.float32, device="cpu")
    other.load_state_dict(state)
    assert all(torch.equal(value, state[name]) for name, value in other.state_dict().items())
    with pytest.raises(ValueError, match="bank"):
        other.load_state_dict(state, assign=True)


@pytest.mark.parametrize(
    ("dtype", "table"),
    [
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.bfloat16),
        (torch.float16, torch.float32),
    ],
)
def test_tables_are_stored_in_the_compute_dtype_but_not_under_fp16(
    dtype: torch.dtype, table: torch.dtype
) -> None:
    model = trained_model(Kind(), dtype)
    for name, value in model.state_dict().items():
        is_table = name.startswith(("transformer.wte", "value_embeds"))
        assert value.dtype == (table if is_table else torch.float32), name
    x = model.hidden(torch.arange(8)[None])
    assert x.dtype == dtype


@pytest.mark.parametrize(("dtype", "digits"), [(torch.bfloat16, 8), (torch.float16, 11)])
@torch.no_grad()
def test_low_precision_is_as_near_to_float32_as_the_references(
    dtype: torch.dtype, digits: int
) -> None:
    """The reference's own rounding error is the yardstick: ours may not be worse than twice it.

    Both round every activation to `digits` bits, so each differs from float32 by about the same
    random walk of roundings of 2^-digits; they differ from each other by no more.
    """
    kind = KINDS["grouped queries"]
    model = trained_model(kind, dtype)
    exact = PlainGPT(model.shape)
    exact.load_state_dict({n: v.float() for n, v in model.state_dict().items()})
    tokens = batches(kind, 1)[0][0]
    truth = exact(tokens)
    theirs = (plain_twin(model)(tokens) - truth).abs()
    ours = (model(tokens) - truth).abs()
    assert ours.mean() < 2 * theirs.mean()
    assert ours.mean() < 4 * 2.0**-digits * truth.abs().max()


def test_initial_values() -> None:
    kind = Kind(depth=4, aspect_ratio=64, head_dim=64)
    shape = kind.plan()[0]
    model = GPT(shape, compute_dtype=torch.float32, device="cpu")
    model.init_weights(7)
    width = math.sqrt(3 / shape.n_embd)
    for name, value in model.state_dict().items():
        if name == "transformer.wte.weight":
            assert value.std() == pytest.approx(0.8, rel=0.01)
        elif name == "lm_head.weight":
            assert value.std() == pytest.approx(0.001, rel=0.01)
        elif name.endswith("c_proj.weight"):
            assert value.count_nonzero() == 0
        elif name.endswith(("c_q.weight", "c_k.weight", "c_v.weight")) or "value_embeds" in name:
            assert_uniform(value, -width, width)
        elif name.endswith("c_fc.weight"):
            assert_uniform(value, -0.4 * width, 0.4 * width)
        elif "gate" in name:
            assert value.min() >= 0
            assert 0.01 < value.max() <= 0.02
    state = model.state_dict()
    assert state["smear_lambda"].item() == 0
    assert state["backout_lambda"].item() == pytest.approx(0.2)
    assert state["resid_lambdas"].tolist() == pytest.approx(
        [1.15, 1.15 - 0.1 / 3, 1.15 - 0.2 / 3, 1.05]
    )
    assert state["x0_lambdas"].tolist() == pytest.approx([0.20, 0.15, 0.10, 0.05])


def assert_uniform(value: torch.Tensor, low: float, high: float) -> None:
    assert low <= value.min() < 0.98 * low
    assert 0.98 * high < value.max() <= high
    assert value.std() == pytest.approx((high - low) / math.sqrt(12), rel=0.02)


def test_initial_values_depend_on_the_seed_alone() -> None:
    shape = Kind().plan()[0]
    states = []
    for seed in (1, 1, 2):
        torch.manual_seed(len(states))  # torch's own generator plays no part
        model = GPT(shape, compute_dtype=torch.float32, device="cpu")
        model.init_weights(seed)
        states.append(model.state_dict())
    assert all(torch.equal(states[0][n], states[1][n]) for n in states[0])
    assert not torch.equal(states[0]["lm_head.weight"], states[2]["lm_head.weight"])
