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
