"""The evaluation of a checkpoint as a job: val bpb by both tables where the older one counts, and
the losses that the run's own evaluations have."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from tests.trainer.lab import TINY, Lab
from tests.trainer.shapes import KINDS, Kind, batches, trained_model
from trainer.contract.durable import write_durably
from trainer.contract.orders import JobOrder
from trainer.contract.plan import PlanContext, make_plan
from trainer.contract.spec import resolve
from trainer.jobs import evaluate, token_losses
from trainer.jobs.load_model import Loaded
from trainer.optim.optimizer import Optimizer
from trainer.runtime.compiler import Compiler
from trainer.train.compiled_losses import CompiledLosses
from trainer.train.step import Stepper

EVALUATE = {"bpb_every": "end", "eval_tokens": 1024, "sample_every": None}


@pytest.mark.parametrize("table", ["raw", "decoded"])
def test_the_runs_own_value_comes_last(lab, table: str) -> None:
    run: Lab = lab(
        "job",
        model={**TINY["model"], "vocab_size": 265},  # no merges: é is two tokens
        horizon={"steps": 2},
        evaluate={
            "bpb_every": "end",
            "eval_tokens": 1024,
            "sample_every": None,
            "token_bytes": table,
        },
    )
    spec = resolve(run.spec_body)
    write_durably(run.run_dir.spec, spec.model_dump_json().encode())
    plan = make_plan(spec, PlanContext(device_type="cpu"))
    write_durably(run.run_dir.plan, plan.model_dump_json().encode())
    run.run()
    (trained,) = run.events("evaluation")
    emitted: list[Any] = []
    reporter = SimpleNamespace(emit=emitted.append)
    own: Any = SimpleNamespace(reporter=reporter, control=SimpleNamespace(wants_attention=bool))
    result = evaluate.run(order_of(run), own)
    found = [e for e in emitted if e.kind == "evaluation"]
    tables = [e.settings["token_bytes"] for e in found]
    assert tables == (["raw", "decoded"] if table == "decoded" else ["raw"])
    assert result["bpb"] == found[-1].value == trained["value"]
    assert found[-1].identity == trained["identity"]
    if table == "decoded":
        assert found[0].value > found[1].value
        assert found[0].identity != found[1].identity


def order_of(run: Lab) -> JobOrder:
    return JobOrder(
        job_id="job_x",
        job="evaluate",
        token="t",
        data_dir=str(run.root),
        run_id="run_lab",
        run_dir=str(run.run_dir.root),
        device="cpu",
        params={"checkpoint": "step-000000002-a0001", "bpb": True, "core": False},
    )


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_a_jobs_losses_are_those_of_the_runs_own_evaluations_to_the_bit(kind: Kind) -> None:
    """As on a GPU, where both compute by the trunk of training: of a model that has gradients and
    of one that has none."""
    model = trained_model(kind)
    run = Stepper(
        model, Optimizer(model, kind.plan()[1]), compile=False, deterministic=True, rows=2,
        explicit_gradients=True,
    )  # fmt: skip
    frozen = {"attention": {str(w): name for w, name in run.attention.items()}}
    loaded = cast(Loaded, SimpleNamespace(model=trained_model(kind), rows=2, frozen=frozen))
    compiler = Compiler(False, torch.device("cpu"))
    job = CompiledLosses(loaded.model, token_losses._trunk(loaded, compiler), compiler, loaded.rows)
    for tokens, targets in batches(kind, 2):
        found = job(tokens, targets)
        assert torch.equal(found, run.token_losses(tokens, targets))
        plain = model.loss(tokens, targets, reduction="none").detach()
        torch.testing.assert_close(found, plain, rtol=0, atol=5e-6)
    assert loaded.model.bank.gradients is None


def test_on_the_cpu_a_job_computes_uncompiled() -> None:
    loaded = SimpleNamespace(model=trained_model(Kind()), rows=2, frozen={"compile": True})
    assert token_losses.of_checkpoint(cast(Loaded, loaded), cast(Any, None)) is None


def test_a_job_takes_the_attention_that_the_run_settled_where_it_is_there() -> None:
    kind = KINDS["windows"]
    model = SimpleNamespace(
        device=torch.device("cuda"), compute_dtype=torch.bfloat16, shape=kind.plan()[0]
    )
    short, whole = sorted(set(model.shape.windows))
    frozen = {"attention": {str(short): "masked", str(whole): "of another release"}}
    loaded = cast(Loaded, SimpleNamespace(model=model, frozen=frozen))
    assert token_losses._attention(loaded) == {short: "masked", whole: "sdpa"}
    unsettled = cast(Loaded, SimpleNamespace(model=model, frozen={}))
    assert token_losses._attention(unsettled) == {short: "masked", whole: "sdpa"}


def test_a_compiler_that_fails_is_reported_with_the_first_batch_and_never_again() -> None:
    told: list[Any] = []
    compiler = Compiler(False, torch.device("cpu"))
    reporter = cast(Any, SimpleNamespace(emit=told.append))
    losses = token_losses.FirstCompiles(lambda tokens, targets: tokens, compiler, reporter)
    compiler.reason = "InductorError: gcc is broken"
    batch = torch.zeros(1, 2)
    for _ in range(3):
        assert losses(batch, batch) is batch
    compiling, notice, evaluating = told
    assert (compiling.stage, evaluating.stage) == ("compiling", "evaluating")
    assert notice.code == "compile_failed"
    assert "gcc is broken" in notice.message
