"""Evaluation job on a GPU: it uses the functions that are compiled for training.

Values mean nothing here; the CPU tests check that they equal those of the run's own evaluations
(tests/trainer/test_evaluate_job.py).
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

pytestmark = [pytest.mark.needs("nullgpu"), pytest.mark.timeout(600)]  # cold compilations

ROWS = 8
# golden numbers of one micro-batch of the preset, counted with torch 2.14.1
LAUNCHES, GIGABYTES_MOVED, PEAK_GIGABYTES = 149, 17.0, 1.68


def micro_batch() -> dict[str, Any]:
    """Cost of one micro-batch of the preset in a job, and its cost uncompiled."""
    import torch

    from tests.nullgpu.counting import cost
    from tests.nullgpu.steps import batches
    from tests.nullgpu.traffic import traffic
    from trainer.contract.shape import shape_of
    from trainer.contract.spec import resolve
    from trainer.jobs import token_losses
    from trainer.jobs.load_model import Loaded
    from trainer.model.gpt import GPT
    from trainer.runtime.reporter import Reporter

    shape = shape_of(resolve({"name": "job", "preset": "rtx4070-d12"}).model)
    model = GPT(shape, compute_dtype=torch.bfloat16, device="cuda")
    frozen = {"compile": True, "attention": {str(w): "sdpa" for w in shape.windows}}
    loaded = cast(Loaded, SimpleNamespace(model=model, rows=ROWS, frozen=frozen))
    notices: list[Any] = []
    losses = token_losses.of_checkpoint(
        loaded, cast(Reporter, SimpleNamespace(emit=notices.append))
    )
    assert losses is not None
    tokens, targets = (t.cuda() for t in batches(1, ROWS, shape)[0])

    def uncompiled() -> torch.Tensor:
        with torch.no_grad():
            return model.loss(tokens, targets, reduction="none")

    found: dict[str, Any] = {"kinds": [event.kind for event in notices]}
    for name, compute in (("job", lambda: losses(tokens, targets)), ("uncompiled", uncompiled)):
        compute()
        found[name] = {**cost(compute).to_json(), "moved": traffic(compute).total}
    return found


def test_a_micro_batch_costs_what_it_does_in_training(on_card: Any) -> None:
    """Golden numbers, with tolerance for torch versions; uncompiled 519 launches, 52 GB."""
    found = on_card("rtx4070", micro_batch, seconds=560)
    job, uncompiled = found["job"], found["uncompiled"]
    assert job["launches"] == pytest.approx(LAUNCHES, rel=0.03)
    assert job["moved"] == pytest.approx(GIGABYTES_MOVED * 1e9, rel=0.03)
    assert job["peak_bytes"] == pytest.approx(PEAK_GIGABYTES * 1e9, rel=0.03)
    assert job["launches"] < 0.3 * uncompiled["launches"]
    assert job["moved"] < 0.35 * uncompiled["moved"]
    assert job["peak_bytes"] <= uncompiled["peak_bytes"]


def evaluate(folder: str) -> dict[str, Any]:
    """Events of the job on the checkpoint of a small compiled run."""
    from tests.nullgpu.small_run import attempt, prepared
    from trainer.contract.orders import JobOrder
    from trainer.jobs import evaluate

    run = prepared(Path(folder))
    attempt(run)
    choices = json.loads(run.run_dir.frozen.read_bytes())
    run.run_dir.frozen.write_text(json.dumps({**choices, "compile": True}))
    order = JobOrder(
        job_id="job_x", job="evaluate", token="t", data_dir=str(run.root), run_id="run_lab",
        run_dir=str(run.run_dir.root), device="cuda:0",
        params={"checkpoint": "step-000000002-a0001", "bpb": True, "core": False},
    )  # fmt: skip
    told: list[Any] = []
    own: Any = SimpleNamespace(
        reporter=SimpleNamespace(emit=told.append), control=SimpleNamespace(wants_attention=bool)
    )
    result = evaluate.run(order, own)
    return {
        "stages": [event.stage for event in told if event.kind == "stage"],
        "notices": [event.code for event in told if event.kind == "notice"],
        "measured": [event.evaluation for event in told if event.kind == "evaluation"],
        "result": sorted(result),
    }


def test_a_job_compiles_in_a_stage_of_its_own(on_card: Any, tmp_path: Path) -> None:
    found = on_card("rtx4070", evaluate, folder=str(tmp_path))
    assert found["stages"] == ["loading", "evaluating", "compiling", "evaluating"]
    assert found["notices"] == []
    assert found["measured"] == ["bpb"]
    assert found["result"] == ["bpb", "checkpoint", "step"]


def test_a_job_whose_compiler_fails_measures_without_it(on_card: Any, tmp_path: Path) -> None:
    broken = {"CC": "/bin/false", "TRITON_CACHE_DIR": str(tmp_path / "triton"),
              "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "inductor")}  # fmt: skip
    found = on_card("rtx4070", evaluate, variables=broken, folder=str(tmp_path / "run"))
    assert found["notices"] == ["compile_failed"]
    assert found["measured"] == ["bpb"]
