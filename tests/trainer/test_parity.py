"""The trainer continues a real nanochat run as nanochat itself did: losses, weights, evaluation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.reference import fixture
from trainer.contract import schedule
from trainer.contract.plan import make_plan
from trainer.contract.schedule import ExtendSchedule, PhaseSchedule
from trainer.contract.spec import resolve
from trainer.interop.nanochat import read_nanochat
from trainer.interop.nanochat_spec import spec_from_run
from trainer.model.gpt import GPT
from trainer.optim.optimizer import Optimizer
from trainer.train.step import Stepper

TOKENS_PER_EVALUATION = 8192


@dataclass
class Continuation:
    """The fixture's run, continued from step 60 to 120 by our trainer."""

    model: GPT
    phase: PhaseSchedule
    peak_weight_decay: float
    losses: dict[int, float]
    rates: dict[int, tuple[float, float, float]]
    bpb: dict[int, float]
    fetched_ahead: tuple[int, int, int]


@pytest.fixture(scope="module")
def continued() -> Continuation:
    imported = read_nanochat(fixture.BASE, fixture.TAG, 60)
    spec = resolve(spec_from_run(imported, name="d4", corpus=Path("corpus"), tokenizer=Path("t")))
    plan = make_plan(spec)
    phase = schedule.extend_schedule(
        plan.schedule, 60, 120, ExtendSchedule(rewarm_steps=0), warmup_steps=40, warmdown_ratio=0.65
    )
    model = GPT(imported.shape, compute_dtype=torch.float32, device="cpu")
    model.load_state_dict(imported.model)
    optimizer = Optimizer(model, plan.hyperparameters)
    optimizer.load_state_dict(imported.optimizer_state())
    stepper = Stepper(model, optimizer, compile=False, deterministic=True)
    run = Continuation(model, phase, plan.hyperparameters.weight_decay, {}, {}, {}, (0, 0, 0))
    assert imported.cursor is not None
    batches = fixture.training_batches(imported.cursor.pq_idx, imported.cursor.rg_idx + 1)
    run.bpb[60] = bits_per_byte(model)
    for step in range(60, 120):
        taken = [next(batches) for _ in range(fixture.MICRO_BATCHES)]
        rates = (
            schedule.lr_multiplier(phase, step),
            schedule.muon_momentum(phase, step),
            schedule.weight_decay_multiplier(phase, step) * run.peak_weight_decay,
        )
        result = stepper.train_step(
            [batch for batch, _ in taken],
            lr_multiplier=rates[0],
            momentum=rates[1],
            weight_decay=rates[2],
        )
        run.losses[step], run.rates[step] = result.loss.item(), rates
        if step + 1 in (90, 120):
            run.bpb[step + 1] = bits_per_byte(model)
    run.fetched_ahead = next(batches)[1]
    return run


@torch.no_grad()
def bits_per_byte(model: GPT) -> float:
    lengths = torch.from_numpy(fixture.tokenizer().token_bytes.copy())
    nats, num_bytes = 0.0, 0
    count = TOKENS_PER_EVALUATION // (fixture.ROWS * fixture.LENGTH)
    for tokens, targets in fixture.validation_batches(count):
        bytes_BT = lengths[targets]
        loss_BT = model.loss(tokens, targets, "none")
        nats += loss_BT[bytes_BT > 0].sum().item()
        num_bytes += int(bytes_BT.sum())
    return nats / (math.log(2) * num_bytes)


def test_every_loss_of_the_extension(continued: Continuation) -> None:
    expected = {e["step"]: e["loss"] for e in fixture.reference()["extension"]}
    assert continued.losses.keys() == expected.keys()
    worst = max(abs(continued.losses[s] - loss) for s, loss in expected.items())
    assert worst < 1e-5


def test_every_rate_of_the_extension(continued: Continuation) -> None:
    for entry in fixture.reference()["extension"]:
        lr, momentum, weight_decay = continued.rates[entry["step"]]
        assert lr == pytest.approx(entry["lrm"], abs=1e-9)
        assert momentum == pytest.approx(entry["momentum"], abs=1e-9)
        # the reference gives the weight decay before scaling of the whole run
        assert weight_decay == pytest.approx(entry["wd"], abs=1e-9)


def test_weights_after_the_last_step(continued: Continuation) -> None:
    path = fixture.BASE / "base_checkpoints" / "d4" / "model_000120.pt"
    expected = torch.load(path, weights_only=True)
    ours = continued.model.state_dict()
    assert ours.keys() == expected.keys()
    worst = {name: (ours[name] - w).abs().max().item() for name, w in expected.items()}
    assert max(worst.values()) < 1e-3, worst


def test_cursor_after_the_last_step(continued: Continuation) -> None:
    """nanochat saves the cursor of the batch it has already fetched ahead."""
    meta = read_meta_cursor(120)
    assert continued.fetched_ahead == meta


def read_meta_cursor(step: int) -> tuple[int, int, int]:
    from trainer.interop.nanochat_meta import read_meta

    path = fixture.BASE / "base_checkpoints" / "d4" / f"meta_{step:06d}.json"
    cursor = read_meta(path, fixture.BASE)[0].dataloader_state_dict
    assert cursor is not None
    return cursor.pq_idx, cursor.rg_idx, cursor.epoch


def test_bits_per_byte(continued: Continuation) -> None:
    for entry in fixture.reference()["val_bpb"]["extension"]:
        assert continued.bpb[entry["step"]] == pytest.approx(entry["bpb"], abs=1e-5)


@torch.no_grad()
def test_logits_of_the_last_step(continued: Continuation) -> None:
    reference = fixture.reference()
    logits = continued.model(torch.tensor([reference["prompt_ids"]]))[0]
    assert logits.argmax(-1).tolist() == reference["argmax"]
    logsumexp = torch.tensor(reference["logsumexp"])
    torch.testing.assert_close(torch.logsumexp(logits, -1), logsumexp, atol=2e-4, rtol=0)
    first8 = torch.tensor(reference["logits_first8_vocab_at_positions"])
    ours = logits[reference["logits_positions"], :8]
    torch.testing.assert_close(ours, first8, atol=2e-4, rtol=0)


@torch.no_grad()
def test_greedy_sample_of_the_last_step(continued: Continuation) -> None:
    reference = fixture.reference()
    tokens: Tensor = torch.tensor([reference["greedy_prompt_ids"]])
    for _ in range(16):
        best = continued.model(tokens)[:, -1].argmax(-1, keepdim=True)
        tokens = torch.cat([tokens, best], dim=1)
    assert tokens[0].tolist() == reference["greedy16"]
    assert fixture.tokenizer().decode(tokens[0].tolist()) == reference["greedy16_text"]
