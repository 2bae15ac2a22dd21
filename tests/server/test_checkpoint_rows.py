"""Committed and not reported, held by a job, measured twice: rows follow what is on the disk."""

from __future__ import annotations

import ast
import json
import time
from pathlib import Path

import pytest

from server.database import tables
from server.database.db import Database
from server.domain import checkpoint_lookup, checkpoints
from server.errors import Conflict
from server.ingestion import apply_attempt
from server.settings import Settings
from server.supervision import job_params
from tests.server import rows
from tests.server.reporting import Reporter, attempt, create
from trainer.contract import events, holds, rundir


def _commit(settings: Settings, run_id: str, step: int, number: int, owner: str = "") -> Path:
    """A checkpoint as a trainer leaves it that is killed before it reports."""
    path = settings.paths.run(run_id).checkpoint(step, number)
    path.mkdir(parents=True)
    manifest = {
        "format": 1, "run_id": owner or run_id, "attempt": number, "step": step, "why": "pause",
        "files": {"model.safetensors": {"bytes": 70, "sha256": "0" * 64}}, "pinned": True,
        "evaluations": {"bpb": {"value": 1.5, "step": step}}, "next_loss": 2.5,
        "unix_seconds": 5.0,
    }  # fmt: skip
    (path / "manifest.json").write_text(json.dumps(manifest))
    return path


def test_f02_a_checkpoint_committed_and_not_reported_is_listed(
    db: Database, settings: Settings
) -> None:
    reporter = attempt(db, settings, create(db))
    reporter.begin()
    reporter.steps(0, 40)
    reporter.ingest()
    path = _commit(settings, reporter.run_id, 40, 1)
    _commit(settings, reporter.run_id, 30, 1, owner="run_of_somebody_else")
    for _ in range(2):
        with db.write() as session:
            checkpoints.record_found(session, session.get_one(tables.Run, reporter.run_id))
    with db.read() as session:
        (row,) = checkpoint_lookup.usable(session, reporter.run_id)
        assert (row.name, row.step, row.bytes, row.pinned) == (path.name, 40, 70, True)
        assert (row.val_bpb, row.next_loss, row.attempt_id) == (1.5, 2.5, reporter.attempt_id)
        said = [e for e in session.query(tables.Event) if "was found on the disk" in e.message]
        assert len(said) == 1


def test_what_a_job_reads_is_held_until_it_is_done(db: Database, settings: Settings) -> None:
    reporter = attempt(db, settings, create(db))
    reporter.begin()
    reporter.steps(0, 40)
    for step in (20, 30, 40):
        reporter.save(step)
    reporter.ingest()
    for step in (20, 30):  # retention took the newest away a moment ago
        _commit(settings, reporter.run_id, step, 1)
    saved = settings.paths.run(reporter.run_id).checkpoints
    with db.write() as session:
        run = session.get_one(tables.Run, reporter.run_id)
        job = rows.job(
            id="job_reads", run_id=run.id, kind="sample", where="cpu", state="running",
            params={"prompts": ["x"]}, token="t", created_at=1.0,
        )  # fmt: skip
        session.add(job)
        session.flush()
        name = job_params.resolve(session, job, settings)["checkpoint"]
        assert name == "step-000000030-a0001"  # the newest that is still there
        assert holds.is_held(saved, name)
        row = checkpoints.get(session, run, name)
        with pytest.raises(Conflict, match="a job is reading it"):
            checkpoints.delete(session, run, row, time.time())
    holds.release(saved, "job_reads")
    assert not holds.is_held(saved, name)


def test_a_hold_of_a_job_that_is_gone_counts_for_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = tmp_path / "runs" / "run_a" / "checkpoints"
    (saved / "step-000000010-a0001").mkdir(parents=True)
    assert holds.hold(saved, "step-000000010-a0001", "job_a")
    assert not holds.hold(saved, "step-000000020-a0001", "job_a")
    monkeypatch.setattr(holds, "STARTING_SECONDS", 0.0)
    (tmp_path / "jobs" / "job_a").mkdir(parents=True)
    with rundir.locked(tmp_path / "jobs" / "job_a" / "lock", "alive"):
        assert holds.is_held(saved, "step-000000010-a0001")
    assert not holds.is_held(saved, "step-000000010-a0001")
    assert not list(saved.glob(".held-*"))


def _evaluation(reporter: Reporter, at: int, value: float) -> None:
    reporter.say(
        events.EvaluationResult(
            evaluation="bpb", step=at, value=value, identity="i", settings={}, result={},
            seconds=1.0,
        )
    )  # fmt: skip


def _sample(reporter: Reporter, at: int, text: str) -> None:
    reporter.say(events.SampleResult(step=at, prompt="def ", text=text, seconds=0.1))


def test_what_is_measured_again_after_a_kill_is_counted_once(
    db: Database, settings: Settings
) -> None:
    """Both attempts measured step 40; the second began from the checkpoint of that very step."""
    first = attempt(db, settings, create(db, steps=40))
    first.begin()
    first.steps(0, 40)
    name = first.save(40)
    _evaluation(first, 40, 1.5)
    _sample(first, 40, "once")
    first.ingest()
    second = attempt(db, settings, first.run_id)
    second.begin(40, name)
    _evaluation(second, 40, 1.5)
    _sample(second, 40, "once")
    _sample(second, 40, "another prompt")
    second.ingest()
    with db.read() as session:
        values = session.query(tables.Evaluation).filter_by(superseded=False).all()
        texts = session.query(tables.Sample).filter_by(superseded=False).all()
        assert [row.attempt_id for row in values] == [second.attempt_id]
        assert [row.text for row in texts] == ["once", "another prompt"]
        (kept,) = checkpoint_lookup.usable(session, first.run_id)
        assert kept.val_bpb == 1.5  # also where another attempt measured it


def test_an_evaluation_at_the_joint_of_two_phases_keeps_both(
    db: Database, settings: Settings
) -> None:
    first = attempt(db, settings, create(db, steps=40))
    first.begin()
    first.steps(0, 40)
    name = first.save(40)
    _evaluation(first, 40, 1.5)
    first.ingest()
    second = attempt(db, settings, first.run_id)
    with db.write() as session:
        session.get_one(tables.Attempt, second.attempt_id).phase_index = 1
    second.begin(40, name)
    _evaluation(second, 40, 1.6)
    second.ingest()
    with db.read() as session:
        assert session.query(tables.Evaluation).filter_by(superseded=False).count() == 2


def test_f40_a_clock_set_back_ends_nothing_before_it_began(
    db: Database, settings: Settings
) -> None:
    reporter = attempt(db, settings, create(db, steps=40))
    with db.write() as session:
        session.query(tables.Phase).one().started_at = 5000.0
        row = session.get_one(tables.Attempt, reporter.attempt_id)
        applied = apply_attempt.AppliedAttempt(session, row)
        applied.take(events.Ended(outcome="completed", reason="finished", step=40), 900.0)  # type: ignore[arg-type]
        phase = session.query(tables.Phase).one()
        assert (phase.ended_at, phase.ended_at_step) == (5000.0, 40)


# --- one set of queries --------------------------------------------------------------------------

SERVER = Path(checkpoint_lookup.__file__).parents[1]
QUERIES = "domain/checkpoint_lookup.py"
SHOWN = {"queries/history.py": {"bad"}}  # columns of the answer


def test_only_one_module_says_which_checkpoints_exist_and_are_usable() -> None:
    """No other reads `deleted_at` or `bad`, or selects checkpoints by conditions of its own."""
    for path in sorted(SERVER.rglob("*.py")):
        name = path.relative_to(SERVER).as_posix()
        if name == QUERIES or name.split("/")[0] in ("cli", "client"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                read = {node.attr} & {"deleted_at", "bad"} - SHOWN.get(name, set())
                assert not read, f"{name}:{node.lineno} reads {node.attr}"
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "select":
                named = {getattr(n, "attr", getattr(n, "id", "")) for n in ast.walk(node)}
                assert "Checkpoint" not in named, f"{name}:{node.lineno} selects checkpoints"
