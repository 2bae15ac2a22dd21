"""The trunk with written-out gradients equals the plain reference, as autograd's does."""

from __future__ import annotations

import pytest
import torch

from tests.trainer.shapes import KINDS, RATES, Kind, batches, trained_model
from tests.trainer.test_step import assert_equal_gradients, gradients, plain_twin
from trainer.model import attention, attention_gradient, relu2
from trainer.optim.optimizer import Optimizer
from trainer.runtime.compiler import Compiler
from trainer.train.step import Stepper


def explicit(kind: Kind, dtype: torch.dtype = torch.float32, **how) -> Stepper:
    model = trained_model(kind, dtype)
    how = {"compile": False, "deterministic": True, "rows": 2, "explicit_gradients": True, **how}
    return Stepper(model, Optimizer(model, kind.plan()[1]), **how)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_every_gradient_is_that_of_the_plain_reference(kind: Kind) -> None:
    ours, data = explicit(kind), batches(kind, 2)
    assert ours.describe_choices()["gradients"] == "explicit"
    assert_equal_gradients(gradients(ours, data), plain_twin(ours.model), data)


@pytest.mark.parametrize("tile", [relu2.COMPILED, relu2.TILES[0]])
def test_a_step_is_autograds(tile: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relu2, "missing", lambda *_: None)
    kind = Kind(depth=4)
    ours, other = explicit(kind, relu2_tile=tile), explicit(kind, explicit_gradients=False)
    for seed in range(3):
        data = batches(kind, seed=seed)
        a, b = ours.train_step(data, **RATES), other.train_step(data, **RATES)
        assert a.loss.item() == pytest.approx(b.loss.item(), abs=2e-6)
        assert a.grad_norm.item() == pytest.approx(b.grad_norm.item(), rel=1e-4)


@pytest.mark.filterwarnings("ignore")  # torch's compiler warns about itself
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_the_pieces_as_they_are_traced_compute_every_layer(
    kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each piece is traced at its first layer and serves the others. What is traced is run as it
    is: the compiler behind it would take a minute."""
    monkeypatch.setattr("torch._inductor.standalone_compile", lambda graph, *_, **__: graph)
    monkeypatch.setattr(Compiler, "__call__", lambda _, function: function)
    monkeypatch.setattr("trainer.runtime.compiler.missing", lambda _: None)
    ours, data = explicit(kind, compile=True), batches(kind, 2)
    assert_equal_gradients(gradients(ours, data), plain_twin(ours.model), data)
    assert ours.compiler.reason is None


def test_loss_only_is_the_steps_loss_to_the_bit_and_keeps_nothing() -> None:
    kind = Kind(depth=4, sequence_len=256)
    ours, data = explicit(kind), batches(kind, 2)
    assert torch.equal(ours.loss_only(data), ours.train_step(data, **RATES).loss)


def test_an_evaluation_by_the_trunk_is_the_models_own() -> None:
    kind = Kind(depth=4)
    ours, passes = explicit(kind), []
    assert ours.trunk is not None
    forward = ours.trunk.forward
    ours.trunk.forward = lambda *a, **b: passes.append(a) or forward(*a, **b)
    for number, (tokens, targets) in enumerate(batches(kind, 2), 1):
        found = ours.token_losses(tokens, targets)
        expected = ours.model.loss(tokens, targets, reduction="none").detach()
        assert len(passes) == number
        torch.testing.assert_close(found, expected, rtol=0, atol=5e-6)
        assert (found[targets == -1] == 0).all()
        part = ours.token_losses(tokens[:1], targets[:1])
        assert torch.equal(part, ours.model.loss(tokens[:1], targets[:1], reduction="none"))
        assert len(passes) == number


def test_attention_by_autograd_has_a_backward_pass_in_hand() -> None:
    draw = torch.Generator().manual_seed(0)
    q, k, v, d_y = (torch.randn(2, 8, 2, 4, generator=draw) for _ in range(4))
    shape = Kind(depth=2).plan()[0]
    attend = attention_gradient.choose("sdpa", None, shape, torch.float32, torch.device("cpu"))
    y, back = attend(q, k, v)
    assert not y.requires_grad
    inputs = [t.clone().requires_grad_() for t in (q, k, v)]
    expected = attention.bind("sdpa", None)(*inputs)
    assert torch.equal(y, expected.detach())
    for found, wanted in zip(back(d_y), torch.autograd.grad(expected, inputs, d_y), strict=True):
        assert torch.equal(found, wanted)
