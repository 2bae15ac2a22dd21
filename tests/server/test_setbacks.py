"""An error in the handling of one run or job ends that one, with its path; the others continue."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from server.database import tables
from server.database.tables import Job
from server.domain import imports, jobs
from server.supervision import job_processes, trainers
from tests.server import rows
from tests.server.house import House
from tests.server.reporting import attempt as report_attempt
from tests.server.reporting import create
from trainer.contract import durable, rundir
from trainer.contract.jobs import ExportParams


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    built = House(tmp_path)
    yield built
    built.close()


def _job(house: House, run_id: str | None, kind: str, **params: Any) -> str:
    with house.db.write() as session:
        job = rows.job(
            id=f"job_{kind}", run_id=run_id, kind=kind, where="cpu", state="queued",
            params=params, token="a" * 32, created_at=time.time(),
        )  # fmt: skip
        session.add(job)
    return job.id


def _ended(house: House, job_id: str) -> Job:
    def over() -> Job | None:
        with house.db.read() as session:
            row = session.get_one(Job, job_id)
            return row if row.state in ("failed", "completed") else None

    return house.until(over)


@pytest.fixture
def other_disk() -> Iterator[Path]:
    """A directory on another file system than the temporary one."""
    here = os.stat("/tmp").st_dev
    for root in ("/dev/shm", "/var/tmp", "/run"):
        if os.access(root, os.W_OK) and os.stat(root).st_dev != here:
            import tempfile

            with tempfile.TemporaryDirectory(dir=root) as folder:
                yield Path(folder)
            return
    pytest.skip("there is no second file system to write to")


def test_a_move_to_another_file_system_is_a_durable_copy(tmp_path: Path, other_disk: Path) -> None:
    source, target = tmp_path / "laid out", other_disk / "runs" / "run_1"
    (source / "checkpoints").mkdir(parents=True)
    (source / "checkpoints" / "model").write_bytes(b"weights" * 1000)
    (source / "link").symlink_to("checkpoints/model")
    durable.move_durably(source, target)
    assert (target / "checkpoints" / "model").read_bytes() == b"weights" * 1000
    assert (target / "link").is_symlink()
    assert not source.exists()
    assert [p.name for p in target.parent.iterdir()] == ["run_1"]


def test_a_move_that_fails_on_the_way_leaves_the_source(
    tmp_path: Path, other_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(name: str) -> None:
        if name == "durable.moved":
            raise OSError(28, "No space left on device")

    source, target = tmp_path / "laid out", other_disk / "run_1"
    source.mkdir()
    (source / "file").write_text("kept")
    monkeypatch.setattr(durable.failpoint, "hit", full)
    with pytest.raises(OSError, match="No space"):
        durable.move_durably(source, target)
    assert (source / "file").read_text() == "kept"
    assert list(other_disk.iterdir()) == []


def test_a_move_never_replaces_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    with pytest.raises(FileExistsError):
        durable.move_durably(tmp_path / "a", tmp_path / "b")


def test_an_export_through_a_link_that_leads_nowhere_fails_alone(house: House) -> None:
    run_id = house.create(steps=20)
    with house.daemon():
        house.becomes(run_id, "completed")
        (house.settings.paths.root / "exports").symlink_to("/nowhere/at/all")
        with house.db.write() as session:
            run = session.get_one(tables.Run, run_id)
            job_id = jobs.export(session, run, ExportParams(), time.time()).id
        said = _ended(house, job_id)
        assert said.state == "failed"
        assert "exports" in said.message
        assert "try again" in said.message
        other = house.create("other", steps=20)
        house.becomes(other, "completed")


def test_an_error_in_one_run_ends_that_one_and_no_other(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch = trainers.launch

    def broken(context: Any, run_id: str, device: str) -> Any:
        if run_id == bad:
            raise PermissionError(13, "Permission denied", "/data/runs/bad")
        return launch(context, run_id, device)

    bad = house.create("bad", steps=20)
    good = house.create("good", steps=20)
    monkeypatch.setattr(trainers, "launch", broken)
    with house.daemon():
        failed = house.becomes(bad, "failed")
        house.becomes(good, "completed")
    assert failed.reason == "io_error"
    assert "/data/runs/bad" in failed.reason_message
    assert "right to write" in failed.reason_message


def test_an_error_in_one_job_ends_that_one(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise KeyError("nobody thought of this")

    monkeypatch.setattr(job_processes, "launch", broken)
    with house.daemon():
        said = _ended(house, _job(house, None, "import"))
    assert (said.state, said.reason) == ("failed", "internal_error")
    assert "nobody thought of this" in said.message


@pytest.mark.parametrize("directory", ["runs", "jobs"])
def test_a_tree_that_leads_nowhere_ends_what_needs_it(house: House, directory: str) -> None:
    run_id = house.create(steps=20, prepared=False)
    root = house.settings.paths.root
    (root / directory).symlink_to("/nowhere/at/all")
    with house.daemon():
        failed = house.becomes(run_id, "failed", 30)
        assert directory in failed.reason_message
        (root / directory).unlink()
        good = house.create("good", steps=20)
        house.becomes(good, "completed")


def test_a_row_that_cannot_be_read_keeps_nobody_else_from_training(house: House) -> None:
    bad = house.create("bad", steps=20)
    good = house.create("good", steps=20)
    with house.db.write() as session:
        session.execute(text("UPDATE runs SET spec = '{torn' WHERE id = :id"), {"id": bad})
    with house.daemon():
        house.becomes(good, "completed")


def test_an_import_reaches_runs_on_another_disk(house: House, other_disk: Path) -> None:
    paths = house.settings.paths
    (paths.root / "runs").symlink_to(other_disk)
    job_id = _job(house, None, "import", path="/x", tag="d4", step=60, name="mine")
    staging = paths.job(job_id) / imports.STAGING
    (staging / "checkpoints" / "step-000000060-a0000").mkdir(parents=True)
    result = {
        "spec": {"horizon": {"steps": 60}}, "step": 60, "tokens": 60 * 4096,
        "checkpoint": {
            "name": "step-000000060-a0000", "step": 60, "bytes": 9, "manifest_sha256": "0" * 64,
        },
    }  # fmt: skip
    with house.db.write() as session:
        job = session.get_one(Job, job_id)
        job.result = result
        run_id = imports.adopt(session, job, paths).id
    assert (other_disk / run_id / "checkpoints" / "step-000000060-a0000").is_dir()
    assert (other_disk / run_id / "spec.json").exists()
    assert not staging.exists()
    assert house.run(run_id).state == "completed"


def test_a_record_that_cannot_be_applied_is_passed_over_alone(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    from server.ingestion import apply_attempt

    take = apply_attempt.AppliedAttempt.take

    def broken(self: Any, event: Any, seconds: float) -> None:
        if getattr(event, "step", None) == 7:
            raise ValueError("a record nobody can apply")
        take(self, event, seconds)

    monkeypatch.setattr(apply_attempt.AppliedAttempt, "take", broken)
    reporter = report_attempt(house.db, house.settings, create(house.db, steps=30))
    reporter.begin()
    reporter.steps(0, 30)
    for _ in range(20):
        reporter.ingest()
    with house.db.read() as session:
        steps = {p.step for p in session.query(tables.Point)}
        gaps = [e.message for e in session.query(tables.Event) if e.kind == "report_gap"]
    assert steps == set(range(30)) - {7}
    assert len(gaps) == 1
    assert "a record nobody can apply" in gaps[0]


def test_a_lock_file_says_who_waits_when_it_was_replaced(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    fd = rundir.acquire(path, json.dumps({"pid": 1}))
    assert rundir.is_at(fd, path)
    path.unlink()
    assert not rundir.is_at(fd, path)
    path.write_text("")
    assert not rundir.is_at(fd, path)
    os.close(fd)
