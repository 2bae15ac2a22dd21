"""What the real run does not show: windows, odd heads, grouped queries, padding.

A plain reference trains, writes nanochat's files, continues; the trainer imports them and must go
on likewise, with its own loader, losses, updates, evaluation and samples.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.reference.nanochat_run import EVAL_ROWS, PlainRun, make_base
from tests.reference.scaling import Dials
from trainer.contract import schedule
from trainer.contract.plan import Hyperparameters, Plan, make_plan
from trainer.contract.schedule import ExtendSchedule, PhaseSchedule
from trainer.contract.shape import count_parameters, shape_of
from trainer.contract.spec import RunSpec, resolve
from trainer.data import tokenizer
from trainer.data.loader import open_loader, skip_to_row_group
from trainer.data.prepare import prepare
from trainer.data.prepared import PreparedData
from trainer.evaluate import samples, span
from trainer.interop.nanochat import NanochatRun, read_nanochat
from trainer.interop.nanochat_spec import spec_from_run
from trainer.model.gpt import GPT
from trainer.optim.optimizer import Optimizer
from trainer.train.step import Stepper

FINISHED, EXTENDED = 9, 17
# With one or two layers the kept x is the last layer's: its scale goes away in the norm after it,
# backout_lambda's gradient is rounding noise, and no two implementations agree for long.
DIALS = {
    "windows, three heads, 1,000 tokens": Dials(3, 16, 16, 160, "SSL", 1000),
    "one kv head for three": Dials(3, 16, 16, 160, "SL", 1000, n_kv_head=1),
    "SSSL over five layers": Dials(5, 8, 8, 200, "SSSL", 1000),
    "width rounded up to whole heads": Dials(3, 11, 12, 144, "S", 1000),
    "two kv heads for four": Dials(4, 16, 16, 130, "SL", 1000, n_kv_head=2),
    "the Muon before July": Dials(4, 16, 16, 130, "SL", 1000, n_kv_head=2, recipe="2026-03"),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("nanochat") / "base", 1000)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("dials", DIALS.values(), ids=DIALS.keys())
def test_an_imported_run_goes_on_as_the_plain_reference_does(
    base: Path, tmp_path: Path, dials: Dials
) -> None:
    plain = PlainRun(base, dials)
    plain.train(FINISHED, FINISHED)
    plain.write("x", horizon=FINISHED, prefix="_orig_mod.")
    imported = read_nanochat(base, "x", FINISHED)
    spec = spec_of(imported, base)
    plan = make_plan(spec)
    assert shape_of(spec.model) == dials.shape()
    assert count_parameters(imported.shape).total == sum(p.numel() for p in imported.model.values())
    assert_same_rates(plan.hyperparameters, plain.hyper)

    data = prepare(spec.data, data_dir=tmp_path, vocab_size=dials.vocab_size, tokens_needed=0)
    model = GPT(imported.shape, compute_dtype=torch.float32, device="cpu")
    model.load_state_dict(imported.model)
    losses = go_on(model, imported, spec, plan, data)
    plain.resume()
    assert losses == pytest.approx(plain.train(EXTENDED, EXTENDED), abs=1e-5)
    assert_near(model, plain)
    measured = span.measure(
        model,
        data,
        tokenizer.load(Path(data.tokenizer_dir)),
        span.BpbSettings(EVAL_ROWS * dials.sequence_len, plain.rows, dials.sequence_len),
    )
    assert measured is not None
    assert measured.result.value == pytest.approx(plain.bits_per_byte(), abs=1e-5)
    assert_same_samples(model, data, plain)


def assert_same_rates(ours: Hyperparameters, theirs: Hyperparameters) -> None:
    wanted = theirs.model_dump()
    numbers = {name for name, value in wanted.items() if isinstance(value, float)}
    assert ours.model_dump(include=numbers) == pytest.approx(
        theirs.model_dump(include=numbers), rel=1e-12
    )
    assert ours.model_dump(exclude=numbers) == theirs.model_dump(exclude=numbers)


def spec_of(imported: NanochatRun, base: Path) -> RunSpec:
    folders = {"corpus": base / "base_data_climbmix", "tokenizer": base / "tokenizer"}
    return resolve(spec_from_run(imported, name="x", **folders))


def go_on(
    model: GPT, imported: NanochatRun, spec: RunSpec, plan: Plan, data: PreparedData
) -> dict[int, float]:
    """{step: loss} of the extension by our loader and our step."""
    optimizer = Optimizer(model, plan.hyperparameters)
    optimizer.load_state_dict(imported.optimizer_state())
    rows, length = plan.batch.device_batch_size, plan.batch.sequence_len
    stepper = Stepper(model, optimizer, compile=False, deterministic=True, rows=rows)
    phase = extension(spec, plan)
    assert imported.cursor is not None
    cursor = skip_to_row_group(imported.cursor.model_dump())
    losses = {}
    with open_loader(
        data, split="train", rows=rows, sequence_len=length, cursor=cursor, prefetch=0
    ) as loader:
        for step in range(FINISHED, EXTENDED):
            blocks = [loader.next_batch().tokens_2BT for _ in range(plan.batch.accumulation)]
            result = stepper.train_step(
                [(torch.from_numpy(x), torch.from_numpy(y)) for x, y in blocks],
                lr_multiplier=schedule.lr_multiplier(phase, step),
                momentum=schedule.muon_momentum(phase, step),
                weight_decay=schedule.weight_decay_multiplier(phase, step)
                * plan.hyperparameters.weight_decay,
            )
            losses[step] = result.loss.item()
    return losses


def extension(spec: RunSpec, plan: Plan) -> PhaseSchedule:
    own = spec.schedule
    return schedule.extend_schedule(
        plan.schedule, FINISHED, EXTENDED, ExtendSchedule(rewarm_steps=0),
        warmup_steps=own.warmup_steps, warmdown_ratio=own.warmdown_ratio,
    )  # fmt: skip


def assert_near(model: GPT, plain: PlainRun) -> None:
    """By norm: where an update is about 0, the cautious decay takes or leaves single weights."""
    ours, theirs = model.state_dict(), plain.model.state_dict()
    far = {n: ((ours[n] - w).norm() / w.norm().clamp_min(1e-3)).item() for n, w in theirs.items()}
    assert max(far.values()) < 1e-4, far


def assert_same_samples(model: GPT, data: PreparedData, plain: PlainRun) -> None:
    """Greedy, also from a prompt that is longer than the windows and the training rows."""
    own = tokenizer.load(Path(data.tokenizer_dir))
    for prompt in ("import os", "def main(argv):\n    return [" + "x, " * model.shape.sequence_len):
        sample = samples.generate(model, own, prompt, max_tokens=8)
        assert sample is not None
        assert sample.text == plain.greedy(prompt, 8)
