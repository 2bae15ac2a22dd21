"""The evaluation of a checkpoint as a job: val bpb by both tables where the older one counts."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tests.trainer.lab import TINY, Lab
from trainer.contract.durable import write_durably
from trainer.contract.orders import JobOrder
from trainer.contract.plan import PlanContext, make_plan
from trainer.contract.spec import resolve
from trainer.jobs import evaluate

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
