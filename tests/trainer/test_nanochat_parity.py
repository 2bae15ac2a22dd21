"""Runs of nanochat's generations, imported and continued: losses, weights, val bpb.

That of July 2026 is in test_parity.py, and through the daemon in tests/e2e.

The import job itself lays each one out; then its spec, its data, its cursor and its state go
through our loader and our step, as a trainer does it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from trainer.checkpoint import store
from trainer.contract import schedule
from trainer.contract.jobs import ImportResult
from trainer.contract.orders import JobOrder
from trainer.contract.plan import Plan, make_plan
from trainer.contract.rundir import RunDir
from trainer.contract.schedule import ExtendSchedule
from trainer.contract.shape import shape_of
from trainer.contract.spec import RunSpec, resolve
from trainer.data import prepared
from trainer.data import tokenizer as tokenizers
from trainer.data.loader import open_loader
from trainer.data.prepared import PreparedData
from trainer.evaluate import span
from trainer.jobs import import_nanochat
from trainer.model.gpt import GPT
from trainer.optim.optimizer import Optimizer
from trainer.train.step import Stepper

FIXTURES = Path(__file__).parents[1] / "fixtures"
PACKED = FIXTURES / "nanochat-2026-09-d4" / "datasets" / "stdlib"
START, END = 60, 120
RUNS: dict[str, dict[str, Any]] = {
    "nanochat-2026-05-d4": {},
    "nanochat-2026-05-d4-2gpu": {},
    "nanochat-2026-09-d4": {},
    "nanochat-2026-09-d4-2gpu": {
        "corpus": str(PACKED),
        "tokenizer": str(PACKED / "tokenizer"),
    },
}
GENERATIONS = {
    "nanochat-2026-05-d4": ("v1 of 14 March to 2 July 2026", 1, "2026-03"),
    "nanochat-2026-05-d4-2gpu": ("v1 of 14 March to 2 July 2026", 2, "2026-03"),
    "nanochat-2026-09-d4": ("v2 of September 2026", 1, "2026-09"),
    "nanochat-2026-09-d4-2gpu": ("v2 of September 2026", 2, "2026-09"),
}


@dataclass
class Continued:
    """What became of a run from step 60 to 120."""

    result: ImportResult
    spec: RunSpec
    manifest: store.Manifest
    weights: dict[str, torch.Tensor]
    losses: dict[int, float]
    bpb: dict[int, float]
    identity: str
    cursor: dict[str, Any]


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def imported(folder: Path, name: str, **params: Any) -> tuple[ImportResult, RunDir]:
    """The import job's result and what it laid out."""
    order = JobOrder(
        job_id="job_x",
        job="import",
        token="t",
        data_dir=str(folder),
        params={"path": str(FIXTURES / name), "name": "mine", **RUNS.get(name, {}), **params},
    )
    own: Any = SimpleNamespace(
        directory=folder / "job", reporter=SimpleNamespace(emit=lambda event: None)
    )
    result = ImportResult.model_validate(import_nanochat.run(order, own))
    return result, RunDir(folder / "job" / import_nanochat.STAGING)


@pytest.fixture(scope="module", params=RUNS)
def continued(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    name = request.param
    result, run_dir = imported(tmp_path_factory.mktemp(name), name)
    return name, go_on(result, run_dir)


def go_on(result: ImportResult, run_dir: RunDir, end: int = END) -> Continued:
    spec = resolve(result.spec)
    plan, data = make_plan(spec), prepared.read(run_dir.data, run_dir.root.parents[1])
    path = run_dir.checkpoints / result.checkpoint.name
    weights, state, saved = store.load(path)
    length = plan.batch.sequence_len
    model = GPT(shape_of(spec.model), compute_dtype=torch.float32, device="cpu")
    model.load_state_dict(weights)
    optimizer = Optimizer(model, plan.hyperparameters)
    optimizer.load_state_dict(state)
    stepper = Stepper(model, optimizer, compile=False, deterministic=True)
    phase = schedule.extend_schedule(
        plan.schedule,
        result.step,
        end,
        ExtendSchedule(rewarm_steps=0),
        warmup_steps=spec.schedule.warmup_steps,
        warmdown_ratio=spec.schedule.warmdown_ratio,
    )
    losses, bpb = {}, {result.step: measured(model, spec, plan, data)}
    with open_loader(
        data,
        split="train",
        rows=plan.batch.device_batch_size,
        sequence_len=length,
        packing=spec.data.packing,
        streams=spec.data.streams,
        cursor=saved["loader"],
        prefetch=0,
    ) as loader:
        for step in range(result.step, end):
            blocks = [loader.next_batch().tokens_2BT for _ in range(plan.batch.accumulation)]
            done = stepper.train_step(
                [(torch.from_numpy(x), torch.from_numpy(y)) for x, y in blocks],
                lr_multiplier=schedule.lr_multiplier(phase, step),
                momentum=schedule.muon_momentum(phase, step),
                weight_decay=schedule.weight_decay_multiplier(phase, step)
                * plan.hyperparameters.weight_decay,
            )
            losses[step] = done.loss.item()
            if step + 1 in (90, end):
                bpb[step + 1] = measured(model, spec, plan, data)
        cursor = loader.state_dict()
    manifest = store.verify(path)
    own = span.settings_of(spec, rows=plan.batch.device_batch_size, sequence_len=length)
    identity = span.identity(data, own)
    return Continued(
        result, spec, manifest, dict(model.state_dict()), losses, bpb, identity, cursor
    )


def measured(model: GPT, spec: RunSpec, plan: Plan, data: PreparedData) -> float:
    settings = span.settings_of(
        spec, rows=plan.batch.device_batch_size, sequence_len=plan.batch.sequence_len
    )
    found = span.measure(model, data, tokenizers.load(Path(data.tokenizer_dir)), settings)
    assert found is not None
    return found.result.value


def reference(name: str) -> dict[str, Any]:
    return json.loads((FIXTURES / name / "reference.json").read_text())


def test_every_loss_of_the_extension(continued: tuple[str, Continued]) -> None:
    name, run = continued
    wanted = {entry["step"]: entry["loss"] for entry in reference(name)["extension"]}
    assert run.losses.keys() == wanted.keys()
    assert max(abs(run.losses[step] - loss) for step, loss in wanted.items()) < 1e-5


def test_weights_after_the_last_step(continued: tuple[str, Continued]) -> None:
    name, run = continued
    (path,) = (FIXTURES / name).rglob("model_000120.pt")
    theirs = torch.load(path, weights_only=True)
    assert run.weights.keys() == theirs.keys()
    far = {n: (run.weights[n] - w).abs().max().item() for n, w in theirs.items()}
    assert max(far.values()) < 1e-3, far


def test_val_bpb_before_and_on_the_way(continued: tuple[str, Continued]) -> None:
    """By the byte table and the data streams that nanochat had."""
    name, run = continued
    wanted = {entry["step"]: entry["bpb"] for entry in reference(name)["val_bpb"]["extension"]}
    assert run.bpb == pytest.approx(wanted, abs=1e-5)


def test_the_recorded_val_bpb_has_the_identity_that_it_was_measured_by(
    continued: tuple[str, Continued],
) -> None:
    name, run = continued
    assert run.result.val_bpb == pytest.approx(run.bpb[START], abs=1e-5)
    assert run.result.bpb_identity == run.identity
    assert run.manifest.evaluations["bpb"]["identity"] == run.identity
    is_old = "2026-05" in name
    assert run.spec.evaluate.token_bytes == ("decoded" if is_old else "raw")


def test_what_the_import_says_of_itself(continued: tuple[str, Continued]) -> None:
    name, run = continued
    generation, gpus, recipe = GENERATIONS[name]
    history = run.result.history
    assert (history["generation"], history["gpus"]) == (generation, gpus)
    assert run.spec.model.recipe == recipe
    assert run.spec.optimizer.groups is None
    assert run.spec.data.streams == (gpus if recipe == "2026-03" else 1)
    if recipe == "2026-09":
        assert run.spec.data.source == "nanochat_packed"
        assert run.manifest.approximate is None
        assert run.cursor["row"] == 1920
    else:
        assert run.manifest.approximate is not None
        assert "packing buffer" in run.manifest.approximate
