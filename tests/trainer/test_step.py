"""The training step equals the plain reference, repeats to the bit, refuses what is not finite."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from tests.reference.model import PlainGPT
from tests.reference.optimizer import PlainOptimizer
from tests.reference.step import train_step
from tests.trainer.shapes import KINDS, RATES, Kind, batches, stepper, trained_model
from trainer.model.gpt import GPT
from trainer.optim.optimizer import Optimizer
from trainer.runtime.compiler import Compiler
from trainer.train.step import Stepper

SMALL = Kind()


def plain_twin(model: GPT) -> PlainGPT:
    plain = PlainGPT(model.shape, model.compute_dtype)
    plain.load_state_dict(model.state_dict())
    return plain


def relative(ours: Tensor, theirs: Tensor) -> float:
    return ((ours.float() - theirs.float()).norm() / theirs.float().norm().clamp_min(1e-12)).item()


def assert_near(model: GPT, other: GPT | PlainGPT) -> None:
    """Every weight to 1e-5; the backout's, whose gradient nearly cancels, to 1e-4.

    With one or two layers what is kept for the backout is the last layer's output itself: the norm
    takes its scale away, so that gradient is zero but for rounding, which AdamW makes large.
    """
    ours, theirs = model.state_dict(), other.state_dict()
    worst = {name: relative(ours[name], theirs[name]) for name in theirs}
    backout = worst.pop("backout_lambda")
    assert max(worst.values()) < 1e-5, worst
    assert backout < 1e-4 or model.shape.n_layer < 3


def gradients(stepper: Stepper, micro_batches: list) -> dict[str, Tensor]:
    """The gradient of every parameter, tables' compact ones spread out again."""
    stepper.forward_backward.losses(micro_batches, learn=True)
    model, touched = stepper.model, stepper.model.touched
    assert touched is not None
    found = {name: model.bank.gradient(name).clone() for name in model.bank.parameters}
    return found | {n: touched.gradients[n][touched.slot_V] for n in model.tables}


def assert_equal_gradients(ours: dict[str, Tensor], plain: PlainGPT, data: list) -> None:
    """To 1e-5; one that cancels to nearly nothing is measured against the whole gradient."""
    for tokens, targets in data:
        (plain.loss(tokens, targets) / len(data)).backward()
    theirs = {name: p.grad for name, p in plain.named_parameters()}
    assert ours.keys() == theirs.keys()
    whole = torch.cat([g.flatten() for g in theirs.values() if g is not None])
    floor = 1e-3 * whole.norm()
    worst = {
        name: ((ours[name] - g).norm() / torch.maximum(g.norm(), floor)).item()
        for name, g in theirs.items()
        if g is not None
    }
    assert max(worst.values()) < 1e-5, worst


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
def test_loss_and_gradients_equal_the_reference(kind: Kind) -> None:
    model = trained_model(kind)
    plain = plain_twin(model)
    data = batches(kind)
    assert_equal_gradients(gradients(stepper(model, kind.plan()[1]), data), plain, data)


@pytest.mark.parametrize("explicit", [False, True], ids=["autograd", "explicit"])
@pytest.mark.parametrize("length", [64, 300], ids=["one chunk", "several chunks"])
def test_a_micro_batch_without_a_target_adds_nothing(explicit: bool, length: int) -> None:
    """The loss is that of the others; gradients stay the mean over all."""
    kind = Kind(sequence_len=length)
    (tokens, targets), (other, _) = batches(kind)
    targets[1] = -1  # a whole row beside one that counts
    model, plain = trained_model(kind), plain_twin(trained_model(kind))
    ours = Stepper(
        model,
        Optimizer(model, kind.plan()[1]),
        compile=False,
        deterministic=True,
        rows=2,
        explicit_gradients=explicit,
    )
    for data in (
        [(other, torch.full_like(targets, -1)), (tokens, targets)],
        [(tokens, targets), (other, torch.full_like(targets, -1))],
    ):
        found = gradients(ours, data)
        plain.zero_grad()
        loss = plain.loss(tokens, targets)
        (loss / 2).backward()
        for name, parameter in plain.named_parameters():
            assert parameter.grad is not None
            torch.testing.assert_close(found[name], parameter.grad, rtol=1e-4, atol=2e-6)
        assert ours.loss_only(data).item() == pytest.approx(loss.item(), abs=1e-6)
    result = ours.train_step(data, **RATES)
    assert result.finite
    assert result.loss.item() == pytest.approx(loss.item(), abs=1e-6)


@pytest.mark.parametrize("explicit", [False, True], ids=["autograd", "explicit"])
def test_a_step_without_any_target_has_loss_0_and_gradient_0(explicit: bool) -> None:
    model = trained_model(SMALL)
    ours = Stepper(
        model,
        Optimizer(model, SMALL.plan()[1]),
        compile=False,
        deterministic=True,
        rows=2,
        explicit_gradients=explicit,
    )
    empty = [(tokens, torch.full_like(targets, -1)) for tokens, targets in batches(SMALL)]
    assert model.loss(*empty[0]).item() == 0
    result = ours.train_step(empty, **RATES)
    assert (result.loss.item(), result.grad_norm.item(), bool(result.finite)) == (0, 0, True)
    assert all(value.isfinite().all() for value in whole_state(ours).values())
    assert ours.train_step(batches(SMALL), **RATES).finite


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
def test_a_few_steps_equal_the_reference(kind: Kind) -> None:
    model = trained_model(kind)
    plain = plain_twin(model)
    hyper = kind.plan()[1]
    fast, slow = stepper(model, hyper), PlainOptimizer(plain, hyper)
    for step in range(3):
        data = batches(kind, seed=step)
        loss = train_step(plain, slow, data, **RATES)
        assert fast.train_step(data, **RATES).loss.item() == pytest.approx(loss, abs=1e-6)
    assert_near(model, plain)


def test_bf16_updates_are_as_near_to_float32_as_the_references() -> None:
    """Yardstick as for the logits: the plain bf16 step's own distance from the float32 one."""
    kind = SMALL
    model = trained_model(kind, torch.bfloat16)
    hyper = kind.plan()[1]
    plain, exact = plain_twin(model), PlainGPT(model.shape)
    exact.load_state_dict({n: v.float() for n, v in model.state_dict().items()})
    data = batches(kind)
    loss = train_step(plain, PlainOptimizer(plain, hyper), data, **RATES)
    truth_loss = train_step(exact, PlainOptimizer(exact, hyper), data, **RATES)
    result = stepper(model, hyper).train_step(data, **RATES)
    assert abs(result.loss.item() - truth_loss) < 2 * abs(loss - truth_loss) + 2**-8
    truth, ours = exact.state_dict(), model.state_dict()
    for name, theirs in plain.state_dict().items():
        bound = 2 * relative(theirs, truth[name]) + 2**-8
        assert relative(ours[name], truth[name]) < bound, name


def test_fp16_scales_the_loss_and_keeps_its_scale() -> None:
    kind = SMALL
    model = trained_model(kind, torch.float16)
    plain = plain_twin(trained_model(kind, torch.float16)).float()
    plain.compute_dtype = torch.float32
    ours = stepper(model, kind.plan()[1])
    data = batches(kind)
    truth = train_step(plain, PlainOptimizer(plain, kind.plan()[1]), data, **RATES)
    result = ours.train_step(data, **RATES)
    assert result.finite
    assert result.loss.item() == pytest.approx(truth, abs=2e-3)
    ours.optimizer.load_state_dict(
        ours.optimizer.state_dict() | {"loss_scale.scale": torch.tensor(1e30)}
    )
    before = {n: v.clone() for n, v in model.state_dict().items()}
    overflow = ours.train_step(data, **RATES)
    assert overflow.finite, "an overflow of scaled gradients is no fault of the run"
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())
    assert ours.optimizer.state_dict()["loss_scale.scale"].item() == pytest.approx(5e29)


def test_loss_only_is_the_next_step_to_the_bit_and_touches_nothing() -> None:
    model = trained_model(SMALL)
    ours = stepper(model, SMALL.plan()[1])
    ours.train_step(batches(SMALL, seed=1), **RATES)
    before = {n: v.clone() for n, v in whole_state(ours).items()}
    data = batches(SMALL, 3, seed=2)
    foreseen = ours.loss_only(data)
    assert torch.equal(foreseen, ours.loss_only(data))
    assert all(torch.equal(v, before[n]) for n, v in whole_state(ours).items())
    assert torch.equal(foreseen, ours.train_step(data, **RATES).loss)


def test_a_step_repeats_to_the_bit_also_after_saving_and_loading() -> None:
    hyper = SMALL.plan()[1]
    first = stepper(trained_model(SMALL), hyper)
    for seed in (0, 1):
        first.train_step(batches(SMALL, seed=seed), **RATES)
    kept_model = {n: v.clone() for n, v in first.model.state_dict().items()}
    kept_optimizer = {n: v.clone() for n, v in first.optimizer.state_dict().items()}
    for seed in (2, 3):
        first.train_step(batches(SMALL, seed=seed), **RATES)
    second = stepper(GPT(first.model.shape, compute_dtype=torch.float32, device="cpu"), hyper)
    second.model.load_state_dict(kept_model)
    second.optimizer.load_state_dict(kept_optimizer)
    for seed in (2, 3):
        second.train_step(batches(SMALL, seed=seed), **RATES)
    ours, theirs = whole_state(first), whole_state(second)
    assert all(torch.equal(theirs[n], v) for n, v in ours.items())


@pytest.mark.parametrize("poison", ["nan", "inf"])
def test_what_is_not_finite_leaves_weights_and_state_alone(poison: str) -> None:
    model = trained_model(SMALL)
    ours = stepper(model, SMALL.plan()[1])
    ours.train_step(batches(SMALL), **RATES)
    state = model.state_dict()
    state["transformer.h.1.mlp.c_fc.weight"][0, 0] = float(poison)
    before = {n: v.clone() for n, v in whole_state(ours).items()}
    result = ours.train_step(batches(SMALL, seed=5), **RATES)
    assert not result.finite
    after = whole_state(ours)
    assert all(torch.equal(v.nan_to_num(7), after[n].nan_to_num(7)) for n, v in before.items())


def test_the_device_flag_guards_every_write() -> None:
    """What a GPU does with `finite`, asked of the update functions on the CPU."""
    model = trained_model(SMALL)
    ours = stepper(model, SMALL.plan()[1])
    ours.forward_backward.losses(batches(SMALL), learn=True)
    before = {n: v.clone() for n, v in whole_state(ours).items()}
    optimizer = ours.optimizer
    no = torch.tensor(False)
    with torch.no_grad():
        optimizer._step_adamw(optimizer.count + 1, 1.0, no)
        optimizer._step_muon(1.0, 0.9, 0.1, no)
        assert all(torch.equal(v, before[n]) for n, v in whole_state(ours).items())
        optimizer._step_adamw(optimizer.count + 1, 1.0, ~no)
        optimizer._step_muon(1.0, 0.9, 0.1, ~no)
    changed = [n for n, v in whole_state(ours).items() if not torch.equal(v, before[n])]
    assert len(changed) > 0.9 * len(before) - 2


def test_gradients_are_the_mean_over_micro_batches() -> None:
    data = batches(SMALL, 2)
    for _, targets in data:
        targets.clamp_min_(0)  # equal weights: then one batch of four rows is the same step
    whole = [(torch.cat([t for t, _ in data]), torch.cat([y for _, y in data]))]
    hyper = SMALL.plan()[1]
    apart, together = (stepper(trained_model(SMALL), hyper) for _ in range(2))
    a, b = apart.train_step(data, **RATES), together.train_step(whole, **RATES)
    assert a.loss.item() == pytest.approx(b.loss.item(), abs=1e-6)
    assert a.grad_norm.item() == pytest.approx(b.grad_norm.item(), rel=1e-5)


def test_grad_norm_is_that_of_the_whole_gradient() -> None:
    ours = stepper(trained_model(SMALL), SMALL.plan()[1])
    data = batches(SMALL)
    every = torch.cat([g.flatten() for g in gradients(ours, data).values()])
    assert ours.train_step(data, **RATES).grad_norm.item() == pytest.approx(
        every.norm().item(), rel=1e-5
    )


def test_loss_only_needs_no_more_memory_than_a_step() -> None:
    """Each pause and each end of a run computes it, on a device that a step fills."""
    kind = Kind(depth=4, sequence_len=256)
    ours, data = stepper(trained_model(kind), kind.plan()[1]), batches(kind, 3)
    ours.train_step(data, **RATES)
    step = peak_bytes(lambda: ours.train_step(data, **RATES))
    assert peak_bytes(lambda: ours.loss_only(data)) <= step


def test_the_gradients_of_one_micro_batch_alone_outlive_it() -> None:
    """Three micro-batches take as much memory as one: no name holds the activations of another."""
    kind = Kind(depth=4, sequence_len=256)
    ours = stepper(trained_model(kind), kind.plan()[1])
    one, three = (peak_bytes(partial(ours.loss_only, batches(kind, count))) for count in (1, 3))
    assert three - one < 100_000  # tokens, slots and table rows of a micro-batch, no activations


@pytest.mark.timeout(300)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_compiled_equals_eager() -> None:
    kind = Kind(depth=2)
    eager, compiled = (
        stepper(trained_model(kind), kind.plan()[1], compile=c) for c in (False, True)
    )
    for seed in range(4):
        data = batches(kind, seed=seed)
        # every step touches another number of rows, and nothing is compiled again
        with torch._dynamo.config.patch(error_on_recompile=seed >= 2):
            a, b = eager.train_step(data, **RATES), compiled.train_step(data, **RATES)
        assert a.loss.item() == pytest.approx(b.loss.item(), abs=1e-6)
    assert compiled.describe_choices()["compiled"] is True
    assert_near(compiled.model, eager.model)
    data = batches(kind, seed=9)
    assert torch.equal(compiled.loss_only(data), compiled.train_step(data, **RATES).loss)


def test_without_a_compiler_the_same_functions_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    ours = stepper(trained_model(SMALL), SMALL.plan()[1], compile=True)
    assert ours.train_step(batches(SMALL), **RATES).finite
    choices = ours.describe_choices()
    assert choices["compiled"] is False
    assert "compiler" in choices["compile_reason"]


def test_a_compiler_that_fails_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._dynamo.exc import TorchDynamoException

    def broken(function, **options):
        def call(*args):
            raise TorchDynamoException("no such header")

        return call

    monkeypatch.setattr(torch, "compile", broken)
    compiler = Compiler(True, torch.device("cpu"))
    double = compiler(lambda x: 2 * x)
    assert double(torch.ones(2)).tolist() == [2, 2]
    assert not compiler.active
    assert compiler.reason is not None
    assert "no such header" in compiler.reason


def peak_bytes(call: Callable[[], object]) -> int:
    """The most bytes of CPU tensors alive at once that were allocated inside the call."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    results: Any = profiler.profiler and profiler.profiler.kineto_results
    changes, todo = [], list(results.experimental_event_tree())
    while todo:
        event = todo.pop()
        todo += event.children
        if event.tag.name == "Allocation":
            changes.append((event.start_time_ns, event.extra_fields.alloc_size))
    return max(itertools.accumulate(size for _, size in sorted(changes)))


def whole_state(stepper: Stepper) -> dict[str, Tensor]:
    return {**stepper.model.state_dict(), **stepper.optimizer.state_dict()}
