"""An audit repeats recorded steps: the same bits on sound hardware, others when a bit flipped."""

from __future__ import annotations

import json
from typing import Any

from tests.trainer.lab import Lab, read
from trainer.contract import journal, orders
from trainer.contract.jobs import AuditResult
from trainer.contract.orders import AttemptOrder, JobOrder

SHORT: dict[str, Any] = {
    "horizon": {"steps": 16},
    "checkpoint": {"every_steps": 4, "every_seconds": None, "keep_last": 10},
}


def audit(lab: Lab, step: int, steps: int) -> AuditResult:
    """The job as the daemon starts it, of the steps that attempt 1 did after a checkpoint."""
    directory = lab.root / f"job-{step}"
    directory.mkdir()
    order = orders.read(lab.run_dir.attempt(1), AttemptOrder)
    params = {"checkpoint": f"step-{step:09d}-a0001", "steps": steps}
    job = JobOrder(
        job_id="job_1", job="audit", token="t", data_dir=str(lab.root),
        run_dir=str(lab.run_dir.root), params={**params, "order": order.model_dump(mode="json")},
    )  # fmt: skip
    orders.write(directory, job)
    journal.Writer.create(directory / "inbox.jsonl", journal.JournalHeader("job_1", 0, "t")).close()
    lab.server.start(directory, module="trainer.jobs.__main__")
    assert lab.server.wait() == 0, (directory / "trainer.log").read_text()
    assert json.loads((directory / "exit.json").read_text())["outcome"] == "completed"
    (ended,) = [r for r in read(directory / "outbox.jsonl") if r["kind"] == "ended"]
    return AuditResult.model_validate(ended["result"])


def test_f37_sound_steps_are_verified_and_the_run_is_left_as_it_was(lab):
    run = lab("sound", **SHORT)
    assert run.run() == 0
    live = run.run_dir.checkpoints / ".writing-step-000000099-a0001-1"
    live.mkdir()  # as a trainer that is saving at the same time
    before = sorted(p.name for p in run.run_dir.checkpoints.iterdir())
    found = audit(run, 4, 6)
    assert (found.verdict, found.compared, found.differences) == ("verified", 6, [])
    assert "every loss has the same bits" in found.sentence
    assert sorted(p.name for p in run.run_dir.checkpoints.iterdir()) == before


def test_f37_a_bit_that_flipped_in_the_weights_is_found_and_its_step_named(lab):
    run = lab("flipped", **SHORT)
    # slowly: a save that is due while the one before is being written is left out
    assert run.run("loop.weights=6*off->1*corrupt;loop.step=delay(0.1)") == 0
    assert audit(run, 8, 4).verdict == "verified"  # that checkpoint has the damage in it
    found = audit(run, 4, 4)
    assert found.verdict == "mismatch"
    assert found.differences[0].step == 6
    assert "MISMATCH" in found.sentence
    assert "step 6 " in found.sentence
