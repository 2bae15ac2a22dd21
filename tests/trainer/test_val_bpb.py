"""val bpb at a joint: compared with the recorded one, with the causes of a difference."""

from __future__ import annotations

from typing import Any

import pytest

from tests.trainer.lab import TINY, Lab
from trainer.checkpoint import store
from trainer.contract.schedule import initial_schedule
from trainer.train.val_bpb import BPB_TOLERANCE

STEPS = 8
EVALUATE = {"bpb_every": "end", "eval_tokens": 1024, "sample_every": None}


def finished(lab, **changes: Any) -> Lab:
    """A phase of 8 steps with its val bpb, and the next phase of 8 more, not yet run."""
    run: Lab = lab(
        "joint",
        model={**TINY["model"], "vocab_size": 265},  # no merges: é is two tokens
        horizon={"steps": STEPS},
        schedule={"warmup_steps": 0, "warmdown_ratio": 0.9},
        checkpoint={"every_steps": None, "every_seconds": None},
        evaluate={**EVALUATE, **changes},
    )
    run.run()
    assert run.exit()["outcome"] == "completed"
    longer = initial_schedule(2 * STEPS, 0, 0.5, "linear", 0.05)
    run.extend(longer.model_copy(update={"start_step": STEPS}))
    return run


def codes(run: Lab) -> list[str]:
    return [e["code"] for e in run.events("notice") if e["code"].startswith("val_bpb")]


def only(run: Lab, kind: str, **wanted: Any) -> dict[str, Any]:
    found = [e for e in run.events(kind) if all(e[k] == v for k, v in wanted.items())]
    assert len(found) == 1, found
    return found[0]


def recorded(run: Lab) -> dict[str, Any]:
    path = run.run_dir.checkpoints / f"step-{STEPS:09d}-a0001"
    return store.read_manifest(path).evaluations["bpb"]


def record(run: Lab, **changes: Any) -> None:
    """The checkpoint at the joint with another record of its val bpb."""
    path = run.run_dir.checkpoints / f"step-{STEPS:09d}-a0001"
    bpb = {**recorded(run), **changes}
    changed = store.read_manifest(path).model_copy(update={"evaluations": {"bpb": bpb}})
    (path / store.MANIFEST).write_bytes(store.seal(changed))


def test_the_same_measure_is_verified_and_reported_once(lab) -> None:
    run = finished(lab)
    run.run()
    assert only(run, "resume_checked", what="val_bpb")["verdict"] == "verified"
    assert [(e["step"]) for e in run.events("evaluation")] == [STEPS, STEPS, 2 * STEPS]
    assert "val_bpb_by_two_tables" not in codes(run)


def test_a_value_by_the_older_table_keeps_its_identity_and_both_are_reported(lab) -> None:
    run = finished(lab, token_bytes="decoded")
    run.run()
    assert only(run, "resume_checked", what="val_bpb")["verdict"] == "verified"
    at_joint = [e for e in run.events("evaluation") if e["step"] == STEPS]
    tables = [e["settings"]["token_bytes"] for e in at_joint]
    assert tables == ["decoded", "raw", "decoded"]  # recorded, then both, the run's own last
    recorded, raw, again = at_joint
    assert recorded["identity"] == again["identity"] != raw["identity"]
    assert recorded["value"] == again["value"] < raw["value"]
    said = only(run, "notice", code="val_bpb_by_two_tables")
    assert said["data"] == {"decoded": again["value"], "raw": raw["value"]}
    assert "lower by the older table" in said["message"]


def test_another_table_after_the_joint_is_compared_by_the_recorded_one(lab) -> None:
    """The run counts by raw bytes from now on: the same weights under both, and no false alarm."""
    run = finished(lab, token_bytes="decoded")
    run.spec_body["evaluate"] = {**EVALUATE, "token_bytes": "raw"}
    run.run()
    checked = only(run, "resume_checked", what="val_bpb")
    assert checked["verdict"] == "verified"
    assert checked["found"] == checked["expected"]
    at_joint = [
        e["settings"]["token_bytes"] for e in run.events("evaluation") if e["step"] == STEPS
    ]
    assert at_joint == ["decoded", "decoded", "raw"]
    assert "val_bpb_by_two_tables" in codes(run)
    assert "val_bpb_differs" not in codes(run)


def test_another_span_is_not_comparable_and_the_causes_say_why(lab) -> None:
    run = finished(lab)
    run.spec_body["evaluate"] = {**EVALUATE, "eval_tokens": 512, "token_bytes": "decoded"}
    run.run()
    said = only(run, "notice", code="val_bpb_not_comparable")
    found = [cause["code"] for cause in said["data"]["causes"]]
    assert found[:2] == ["token_bytes", "span"]
    assert "learning_rate" in found  # from 0.17 of its peak to 1
    assert [e["step"] for e in run.events("evaluation")] == [STEPS, 2 * STEPS]


def test_a_recorded_value_that_differs_comes_with_its_causes(lab) -> None:
    """Measured by another program in another dtype, and trained by another Muon."""
    run = finished(lab)
    value = recorded(run)["value"] * (1 + 10 * BPB_TOLERANCE)
    record(run, value=value, compute_dtype="bfloat16", muon="2026-03", program="nanochat")
    run.run()
    assert only(run, "resume_checked", what="val_bpb")["verdict"] == "approximate"
    said = only(run, "notice", code="val_bpb_differs")
    found = {cause["code"]: cause["affects"] for cause in said["data"]["causes"]}
    assert found == {
        "compute_dtype": "this_value",
        "program": "this_value",
        "learning_rate": "later_steps",
        "muon": "later_steps",
    }


@pytest.mark.parametrize("value", [1.0, 100.0])
def test_a_value_that_rises_behind_the_joint_is_reported_with_the_jump(lab, value: float) -> None:
    """Measured by other rules at the joint, so that only the first value behind it can be held
    against the recorded one."""
    run = finished(lab)
    record(run, value=value, identity="other", settings=None)
    run.run()
    assert ("val_bpb_rose" in codes(run)) == (value == 1.0)
    if value == 1.0:
        said = only(run, "notice", code="val_bpb_rose")
        assert said["step"] == 2 * STEPS
        assert said["data"]["found"] > said["data"]["expected"] == 1.0
        found = [cause["code"] for cause in said["data"]["causes"]]
        assert found == ["unknown_settings", "learning_rate"]


def test_what_was_measured_at_the_joint_is_what_later_values_are_held_against(lab) -> None:
    run = finished(lab, recheck_bpb="always")
    record(run, value=1.0, identity="other", settings=None)
    run.run()
    assert "val_bpb_differs" in codes(run)
    assert "val_bpb_rose" not in codes(run)  # it falls from what the same rules gave at the joint
