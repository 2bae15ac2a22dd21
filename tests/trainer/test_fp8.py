"""Products in 8 bits: the numbers they are made of, their error, and what a run makes of it.

torch emulates them on the CPU with the same roundings; no card was seen here.
"""

from __future__ import annotations

import shutil
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.trainer.shapes import RATES, Kind, batches, trained_model
from tests.trainer.test_step import gradients, relative
from trainer.contract import orders
from trainer.contract.orders import AttemptOrder
from trainer.contract.peaks import fp8_missing
from trainer.model import fp8
from trainer.model.gpt import GPT
from trainer.optim.optimizer import Optimizer
from trainer.runtime import device
from trainer.train import frozen_choices
from trainer.train.step import Stepper

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
# half a unit in the last place: 3 and 2 bits of mantissa beside the leading one
ROUNDING = {E4M3: 2**-4, E5M2: 2**-3}
SMALLEST = {E4M3: 2**-9, E5M2: 2**-16}  # subnormal
KIND = Kind(sequence_len=32)


def draw(*size: int, seed: int = 0, spread: float = 1.0) -> Tensor:
    """Normal numbers of very different sizes."""
    randomness = torch.Generator().manual_seed(seed)
    sizes = torch.exp(spread * torch.randn(size, generator=randomness))
    return torch.randn(size, generator=randomness) * sizes


def exact(x: Tensor, dtype: torch.dtype) -> Tensor:
    """What the 8 bits of x say, in float64."""
    bits, scale = fp8.quantize(x, dtype)
    return bits.double() * scale.double()


@pytest.mark.parametrize("dtype", [E4M3, E5M2])
@pytest.mark.parametrize("size", [1e-30, 1e-3, 1.0, 1e30])
def test_every_number_is_rounded_to_the_nearest_and_the_largest_is_kept(dtype, size):
    x = draw(64, 96, spread=3.0) * size
    bits, scale = fp8.quantize(x, dtype)
    assert torch.isfinite(bits.float()).all()
    assert bits.float().abs().max() == torch.finfo(dtype).max
    error = (bits.double() * scale.double() - x.double()).abs()
    allowed = torch.maximum(x.abs().double() * ROUNDING[dtype], scale * SMALLEST[dtype] / 2)
    assert (error <= allowed * (1 + 1e-6)).all()


def test_zeros_stay_zeros_and_what_is_not_finite_is_nan():
    bits, scale = fp8.quantize(torch.zeros(16, 16), E4M3)
    assert bits.float().abs().max() == 0
    assert torch.isfinite(scale)
    y = fp8.linear(torch.zeros(16, 16), torch.ones(16, 16))
    assert torch.equal(y, torch.zeros(16, 16))
    for poison in (float("inf"), float("nan")):
        x = torch.ones(16, 32)
        x[3, 4] = poison
        y = fp8.linear(x, torch.ones(16, 32))
        assert y.isnan().any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_products_and_gradients_are_those_of_the_rounded_numbers(dtype):
    """Against float64 products of what the 8 bits say: beyond float32's sums over up to 128 terms
    only results are rounded, and the two that make the gradient of x."""
    x = draw(2, 48, 64).to(dtype).requires_grad_()
    weights = [draw(o, 64, seed=o).to(dtype).requires_grad_() for o in (32, 80)]
    upstream = [draw(2, 48, o, seed=o + 1).to(dtype) for o in (32, 80)]
    results = [fp8.linear(x, weight) for weight in weights]
    torch.autograd.backward(results, upstream)

    x8 = exact(x.detach().flatten(0, 1), E4M3)
    w8 = [exact(w.detach(), E4M3) for w in weights]
    g8 = [exact(g.flatten(0, 1), E5M2) for g in upstream]
    rounding = 2**-24 * 128 + torch.finfo(dtype).eps / 2

    def close(found: Tensor | None, *factors: tuple[Tensor, Tensor]) -> None:
        assert found is not None
        wanted = torch.stack([a @ b for a, b in factors]).sum(0)
        magnitude = torch.stack([a.abs() @ b.abs() for a, b in factors]).sum(0)
        error = (found.detach().double().view_as(wanted) - wanted).abs()
        assert (error <= len(factors) * rounding * magnitude).all()

    for result, w in zip(results, w8, strict=True):
        close(result, (x8, w.T))
    for weight, g in zip(weights, g8, strict=True):
        close(weight.grad, (g.T, x8))
    close(x.grad, *zip(g8, w8, strict=True))


def test_the_error_is_that_of_independent_roundings():
    """Each factor is off by a uniform error of up to half a unit: e / sqrt(3) on average, and two
    factors make sqrt(2) of it. Rounded within a binade the average is some 0.7 of the bound."""
    x, w, g = draw(512, 256, seed=1), draw(128, 256, seed=2), draw(512, 128, seed=3)
    x.requires_grad_()
    w.requires_grad_()
    y = fp8.linear(x, w)
    y.backward(g)
    plain = x.detach() @ w.detach().T
    both = (2 / 3) ** 0.5 * ROUNDING[E4M3]
    assert 0.3 * both < relative(y.detach(), plain) < both
    mixed = ((ROUNDING[E4M3] ** 2 + ROUNDING[E5M2] ** 2) / 3) ** 0.5
    assert x.grad is not None
    assert w.grad is not None
    assert 0.3 * mixed < relative(x.grad, g @ w.detach()) < mixed
    assert 0.3 * mixed < relative(w.grad, g.T @ x.detach()) < mixed


def test_rows_that_are_views_are_read_right():
    x = draw(64, 32).t()
    w = draw(48, 64, seed=1)
    assert torch.equal(fp8.linear(x, w), fp8.linear(x.contiguous(), w))
    a = x.clone().requires_grad_()
    y = fp8.linear(a, w)
    y.backward(draw(48, 32, seed=2).t())
    b = x.clone().requires_grad_()
    y = fp8.linear(b, w)
    y.backward(draw(48, 32, seed=2).t().contiguous())
    assert a.grad is not None
    assert b.grad is not None
    assert torch.equal(a.grad, b.grad)


# --- a step --------------------------------------------------------------------------------------


def stepper(model: GPT, compile: bool = False, **more: Any) -> Stepper:
    made = Optimizer(model, KIND.plan()[1])
    return Stepper(model, made, compile=compile, deterministic=True, rows=2, **more)


def losses(fp8: bool, steps: int) -> list[float]:
    model = trained_model(KIND, torch.bfloat16)
    one = stepper(model, fp8=fp8)
    return [
        one.train_step(batches(KIND, seed=step % 4), **RATES).loss.item() for step in range(steps)
    ]


def test_it_learns_as_bf16_does():
    """Sixty steps over the same four batches: from 6.9 to 6.2, never more than a few steps off."""
    bf16, ours = losses(False, 60), losses(True, 60)
    assert ours != bf16
    assert bf16[0] - bf16[-1] > 0.6
    assert max(abs(a - b) for a, b in zip(bf16, ours, strict=True)) < 0.15
    assert sum(a - b for a, b in zip(ours, bf16, strict=True)) / 60 < 0.05


def test_gradients_are_near_those_of_bf16_and_the_head_is_untouched_by_it():
    data = batches(KIND)
    plain = gradients(stepper(trained_model(KIND, torch.bfloat16)), data)
    ours = gradients(stepper(trained_model(KIND, torch.bfloat16), fp8=True), data)
    whole = [torch.cat([g.float().flatten() for g in found.values()]) for found in (plain, ours)]
    assert 0 < relative(whole[1], whole[0]) < 0.15


def test_it_repeats_to_the_bit_and_loss_only_is_the_next_step():
    assert losses(True, 5) == losses(True, 5)
    one = stepper(trained_model(KIND, torch.bfloat16), fp8=True)
    seen = one.loss_only(batches(KIND))
    assert one.train_step(batches(KIND), **RATES).loss.item() == seen.item()


def test_evaluations_go_on_in_bf16():
    tokens, targets = batches(KIND)[0]
    model = trained_model(KIND, torch.bfloat16)
    before = model.loss(tokens, targets)
    one = stepper(model, fp8=True)
    assert torch.equal(model.loss(tokens, targets), before)
    assert one.loss_only([(tokens, targets)]).item() != before.item()


def test_what_is_not_finite_leaves_the_weights():
    model = trained_model(KIND, torch.bfloat16)
    one = stepper(model, fp8=True)
    with torch.no_grad():
        model.bank.parameters["transformer.h.1.mlp.c_fc.weight"][0, 0] = float("inf")
    model.bank.refresh()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert not one.train_step(batches(KIND), **RATES).finite
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.timeout(300)
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
@pytest.mark.filterwarnings("ignore")  # torch's compiler warns about itself
def test_compiled_it_is_the_same_but_for_rounding():
    """A compiler keeps float32 where bf16 was written down: numbers round to their neighbour."""
    eager = stepper(trained_model(KIND, torch.bfloat16), fp8=True)
    compiled = stepper(trained_model(KIND, torch.bfloat16), compile=True, fp8=True)
    for step in range(2):
        data = batches(KIND, seed=step)
        wanted = eager.train_step(data, **RATES).loss.item()
        assert compiled.train_step(data, **RATES).loss.item() == pytest.approx(wanted, abs=0.01)
    assert compiled.compiler.active, compiled.compiler.reason


def test_the_fingerprint_says_so():
    model = trained_model(KIND, torch.bfloat16)
    assert stepper(model, fp8=True).describe_choices()["products"] == "fp8"
    assert "products" not in stepper(model).describe_choices()


# --- who has it ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("capability", "has"),
    [((8, 9), True), ((9, 0), True), ((12, 0), True), ((8, 6), False), ((8, 0), False), (None, 0)],
)
def test_who_has_it(capability, has):
    why = fp8_missing("this card", capability)
    assert (why is None) == has
    assert why is None or "this card has" in why


def test_a_run_on_what_has_none_is_refused_and_never_trained_as_something_else(lab):
    run = lab("eight", numerics={"threads": 1, "compile": False, "precision": "fp8"})
    run.run()
    ended = run.exit()
    assert (ended["outcome"], ended["reason"]) == ("failed", "device_missing")
    assert "precision fp8 needs a card" in ended["message"]
    assert run.events("step") == []


def test_what_was_chosen_is_frozen_and_used(lab, monkeypatch):
    """As on a card that has it: the choice, then the session made of it."""
    run = lab("frozen", numerics={"threads": 1, "compile": False, "precision": "fp8"})
    monkeypatch.setattr(device, "require_fp8", lambda _: None)
    order = orders.read(run.order(), AttemptOrder)

    def probe(*_: Any) -> Any:
        raise AssertionError("rows are given")

    chosen = frozen_choices.choose(order, run.run_dir, torch.device("cpu"), probe)
    assert (chosen.fp8, chosen.dtype) == (True, torch.bfloat16)
    again = frozen_choices.choose(order, run.run_dir, torch.device("cpu"), probe)
    assert again == chosen
    monkeypatch.undo()  # the next start finds another card
    with pytest.raises(device.NoSuchDevice, match="fp8 needs a card"):
        frozen_choices.choose(order, run.run_dir, torch.device("cpu"), probe)
    assert frozen_choices.Choices.model_validate(
        {k: v for k, v in chosen.model_dump().items() if k != "fp8"}
    ) == chosen.model_copy(update={"fp8": False})


@pytest.mark.needs("gpu")
def test_on_a_card_products_are_those_of_the_cpu():
    if fp8_missing("it", torch.cuda.get_device_capability()):
        pytest.skip("this card has no FP8")
    x, w, g = draw(64, 128).bfloat16(), draw(96, 128, seed=1).bfloat16(), draw(64, 96).bfloat16()
    found = []
    for where in ("cpu", "cuda"):
        a, b = (t.to(where).requires_grad_() for t in (x, w))
        y = fp8.linear(a, b)
        y.backward(g.to(where))
        assert a.grad is not None
        assert b.grad is not None
        found.append([t.detach().float().cpu() for t in (y, a.grad, b.grad)])
    for ours, wanted in zip(found[1], found[0], strict=True):
        assert relative(ours, wanted) < 2**-8
