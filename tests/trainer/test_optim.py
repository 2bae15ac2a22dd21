"""The optimizer's parts against the plain formulas, and its state."""

from __future__ import annotations

import math

import pytest
import torch

from tests.reference.optimizer import POLAR_EXPRESS, frobenius
from tests.reference.optimizer import muon as plain_muon
from tests.trainer.shapes import RATES, Kind, batches, stepper, trained_model
from trainer.optim.adamw import adamw_from_count, bias_correction
from trainer.optim.loss_scale import FIRST_SCALE, GROW_AFTER_STEPS, LossScale
from trainer.optim.muon import muon_update, orthogonalize
from trainer.optim.optimizer import Optimizer
from trainer.train.step import Stepper

SHAPES = [(2, 4, 12), (3, 64, 64), (2, 32, 128), (2, 128, 32), (1, 1, 12), (2, 48, 64)]


def rates(*values: float) -> list[torch.Tensor]:
    return [torch.tensor(value) for value in values]


@pytest.mark.parametrize("size", SHAPES)
def test_muon_equals_the_reference(size: tuple[int, int, int]) -> None:
    """Against the reference in float64: in float32 it is itself off by more than we are."""
    draw = torch.Generator().manual_seed(sum(size))
    count, rows, cols = size
    truth = torch.randn(size, generator=draw).double() * 0.05
    m = torch.zeros(size, dtype=torch.float64)
    v = torch.zeros((count, rows, 1) if rows >= cols else (count, 1, cols), dtype=torch.float64)
    lr, momentum, decay = rates(0.02, 0.9, 0.1)
    for _ in range(3):
        gradient = torch.randn(size, generator=draw) * 1e-3
        if rows > 1:
            gradient[0, 0] = 0  # a row nothing reached
        before, undecayed = truth.clone(), truth.clone()
        p32, m32, v32 = truth.float(), m.float(), v.float()
        muon_update(p32, gradient, m32, v32, lr, momentum, decay, None, False)
        plain = (gradient.double(), m.clone(), v.clone(), lr.double(), momentum.double())
        plain_muon(undecayed, *plain, 0, torch.float64)
        plain = (gradient.double(), m, v, lr.double(), momentum.double())
        plain_muon(truth, *plain, decay.double(), torch.float64)
        # an update that is zero but for rounding has no sign, and its sign decides on the decay
        signless = (undecayed - before).abs() < 1e-6 * lr
        most = 1.001 * lr * decay * before.abs()
        assert ((p32 - truth).abs() <= most)[signless].all()
        for a, b in ((p32[~signless], truth[~signless]), (m32, m), (v32, v)):
            assert ((a - b).norm() / b.norm()).item() < 1e-5


def test_a_zero_gradient_moves_nothing_but_the_decay() -> None:
    p = torch.randn(1, 8, 8)
    before, zero = p.clone(), torch.zeros_like(p)
    lr, momentum, decay = rates(0.1, 0.9, 0.5)
    muon_update(p, zero, zero.clone(), torch.zeros(1, 8, 1), lr, momentum, decay, None, False)
    torch.testing.assert_close(p, before * (1 - 0.1 * 0.5))


@pytest.mark.parametrize("size", [(2, 64, 256), (2, 256, 64), (1, 64, 64)])
def test_orthogonalization_is_as_good_as_the_plain_iteration(size) -> None:
    """Singular values end near 1; the Gram form with its restart may not be worse than plain bf16.

    A hard case: condition number 1e4.
    """
    x = torch.randn(size, generator=torch.Generator().manual_seed(3))
    u, s, v = torch.linalg.svd(x, full_matrices=False)
    hard = u * torch.logspace(0, -4, s.size(-1)) @ v

    def plain(x: torch.Tensor) -> torch.Tensor:
        x = (x.float() / (frobenius(x.float()) * 1.01 + 1e-6)).to(x.dtype)
        for a, b, c in POLAR_EXPRESS:
            A = x @ x.mT if x.size(-2) <= x.size(-1) else x.mT @ x
            B = b * A + c * (A @ A)
            x = a * x + (B @ x if x.size(-2) <= x.size(-1) else x @ B)
        return x

    truth = plain(hard.double())
    theirs = (plain(hard.bfloat16()).double() - truth).norm()
    ours = (orthogonalize(hard.bfloat16()).double() - truth).norm()
    assert ours < 1.5 * theirs
    # the Gram form squares the condition number, which float32 would show without the restart
    assert (orthogonalize(hard).double() - truth).norm() < 5e-5 * truth.norm()
    usual = plain(x.double())
    assert (orthogonalize(x).double() - usual).norm() < 1e-5 * usual.norm()


def test_bias_correction_keeps_its_digits_at_the_first_steps() -> None:
    for beta in (0.8, 0.96, 0.995):
        for count in (1, 2, 100, 130_000):
            found = bias_correction(torch.tensor(math.log(beta)), torch.tensor(count)).item()
            assert found == pytest.approx(1 - beta**count, rel=3e-7)


def test_rates_computed_with_the_update_are_those_computed_before_it() -> None:
    """On CUDA AdamW's rates are part of its kernel."""
    kind, states = Kind(depth=2), []
    for function in (None, adamw_from_count):
        model = trained_model(kind)
        optimizer = Optimizer(model, kind.plan()[1])
        optimizer.adamw_from_count = function
        stepper = Stepper(model, optimizer, compile=False, deterministic=True, rows=2)
        for seed in range(2):
            stepper.train_step(batches(kind, seed=seed), **RATES)
        states.append({**model.state_dict(), **optimizer.state_dict()})
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name]), name


def test_state_is_flat_named_and_strict() -> None:
    kind = Kind()
    ours = stepper(trained_model(kind), kind.plan()[1])
    ours.train_step(batches(kind), **RATES)
    state = {n: v.clone() for n, v in ours.optimizer.state_dict().items()}
    assert state["adamw.step"].item() == 1
    assert state["muon.48x48.momentum"].shape == (12, 48, 48)
    assert state["muon.48x192.second_momentum"].shape == (3, 1, 192)
    assert state["adamw.smear_gate.weight.exp_avg"].shape == (1, 24)
    assert all(v.is_contiguous() for v in state.values())
    other = stepper(trained_model(kind), kind.plan()[1]).optimizer
    other.load_state_dict(state)
    assert all(torch.equal(v, state[n]) for n, v in other.state_dict().items())
    with pytest.raises(ValueError, match=r"adamw\.step"):
        other.load_state_dict({n: v for n, v in state.items() if n != "adamw.step"})
    with pytest.raises(ValueError, match="shape"):
        other.load_state_dict(state | {"muon.48x48.momentum": torch.zeros(1)})


def test_moments_are_stored_as_the_tables_are() -> None:
    kind = Kind()
    for dtype in (torch.bfloat16, torch.float32):
        state = stepper(trained_model(kind, dtype), kind.plan()[1]).optimizer.state_dict()
        assert state["adamw.transformer.wte.weight.exp_avg"].dtype == dtype
        assert state["adamw.value_embeds.0.weight.exp_avg_sq"].dtype == dtype
        assert state["adamw.lm_head.weight.exp_avg"].dtype == torch.float32


def test_loss_scale_halves_and_doubles() -> None:
    scale = LossScale(torch.device("cpu"))
    scale.update(torch.tensor(False))
    assert scale.scale.item() == FIRST_SCALE / 2
    scale.good_steps.fill_(GROW_AFTER_STEPS - 1)
    scale.update(torch.tensor(True))
    assert scale.scale.item() == FIRST_SCALE
    assert scale.good_steps.item() == 0
    assert not scale.exhausted
