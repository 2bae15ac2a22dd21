"""Evaluations inside a run: a pause in the middle of CORE pauses, and CORE is measured later."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.trainer.evaluate import fixture

AT = 39  # of 40 steps
REPEATS = 3  # of every item: long enough to be interrupted on any machine


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    made = tmp_path / "bundle"
    shutil.copytree(fixture.ROOT / "eval_bundle", made)
    for path in made.rglob("*.jsonl"):
        path.write_bytes(path.read_bytes().rstrip(b"\n").join([b"", b"\n"]) * REPEATS)
    return made


def test_f08_a_pause_in_the_middle_of_core_ends_it_and_the_resume_measures_it(lab, bundle):
    run = lab("core", evaluate={"core_every": AT, "core_bundle": str(bundle), "bpb_every": None})
    run.interrupt("pause", AT - 1, mark=b'"stage":"evaluating"')
    assert run.exit()["outcome"] == "paused"
    assert run.events("evaluation") == []
    run.run()
    assert run.exit()["outcome"] == "completed"
    measured = [(e["evaluation"], e["step"]) for e in run.events("evaluation")]
    assert measured == [("core", AT), ("core", AT + 1)]
    assert {e["verdict"] for e in run.events("resume_checked")} == {"verified"}


def of_core(lab, bundle, name: str):
    """A run of two micro-batches a step in two lanes, with CORE at its end."""
    return lab(
        name,
        horizon={"steps": 4},
        numerics={"threads": 1, "compile": False, "lanes": 2},
        evaluate={"core_every": "end", "core_bundle": str(bundle), "bpb_every": None},
    )


def test_core_shared_out_among_ranks_is_that_of_one(lab, bundle):
    found = []
    for ranks in (1, 2):
        run = of_core(lab, bundle, f"of {ranks}")
        assert run.run_ranks(ranks) == [0] * ranks, run.log(1)
        (measured,) = run.events("evaluation")
        found.append((measured["value"], measured["result"], run.weights_sha256(4)))
    assert found[0] == found[1]


def test_a_pause_in_the_middle_of_core_takes_effect_on_all_ranks(lab, bundle):
    run = of_core(lab, bundle, "paused")
    run.interrupt("pause", 3, mark=b'"stage":"evaluating"', ranks=2)
    outcome = run.exit()["outcome"]
    assert outcome == "paused"
    assert run.run_ranks(2) == [0, 0]
    assert [e["evaluation"] for e in run.events("evaluation")] == ["core"]
    assert {e["verdict"] for e in run.events("resume_checked")} <= {"verified"}
