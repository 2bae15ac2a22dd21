"""A deletion that was interrupted is finished; what is not marked is never touched."""

from __future__ import annotations

import pytest

from server.database import tables
from server.database.db import Database
from server.domain import run_deletion
from server.settings import Settings
from tests.server.reporting import create


def test_only_marked_directories_without_a_row_go(tmp_path):
    settings = Settings(data_dir=tmp_path)
    db = Database.open(settings)
    try:
        kept_id = create(db, "kept")
        runs = tmp_path / "runs"
        for name in (kept_id, "run_deleted", "run_of_a_newer_database"):
            (runs / name).mkdir(parents=True)
        run_deletion.mark(runs / kept_id)
        run_deletion.mark(runs / "run_deleted")
        assert run_deletion.sweep(db, settings.paths) == ["run_deleted"]
        left = {path.name for path in runs.iterdir()}
        assert left == {kept_id, "run_of_a_newer_database"}
        with db.read() as session:
            assert session.get(tables.Run, kept_id) is not None
    finally:
        db.close()


def test_a_run_that_is_a_link_to_another_disk_goes_with_what_it_leads_to(tmp_path):
    disk, runs = tmp_path / "another disk", tmp_path / "runs"
    (disk / "run_a" / "checkpoints" / "step-000000010-a0001").mkdir(parents=True)
    (disk / "elsewhere").mkdir()
    (disk / "elsewhere" / "model.safetensors").write_text("weights")
    runs.mkdir()
    (runs / "run_a").symlink_to(disk / "run_a")
    linked = disk / "run_a" / "checkpoints" / "step-000000020-a0001"
    linked.symlink_to(disk / "elsewhere")
    run_deletion.mark(runs / "run_a")
    assert run_deletion.remove_files(runs / "run_a") == []
    assert list(runs.iterdir()) == []
    assert list(disk.iterdir()) == []


def test_a_run_whose_checkpoints_are_a_link_leaves_nothing(tmp_path):
    (tmp_path / "disk" / "step-000000010-a0001").mkdir(parents=True)
    (tmp_path / "runs" / "run_a").mkdir(parents=True)
    (tmp_path / "runs" / "run_a" / "checkpoints").symlink_to(tmp_path / "disk")
    run_deletion.mark(tmp_path / "runs" / "run_a")
    assert run_deletion.remove_files(tmp_path / "runs" / "run_a") == []
    assert not (tmp_path / "disk").exists()
    assert not (tmp_path / "runs" / "run_a").exists()


def test_what_lies_beside_a_runs_files_behind_a_link_stays(tmp_path):
    disk = tmp_path / "disk"
    (disk / "step-000000010-a0001").mkdir(parents=True)
    (disk / "holidays").mkdir()
    (tmp_path / "runs" / "run_a").mkdir(parents=True)
    (tmp_path / "runs" / "run_a" / "checkpoints").symlink_to(disk)
    assert run_deletion.remove_files(tmp_path / "runs" / "run_a") == []
    assert [path.name for path in disk.iterdir()] == ["holidays"]
    assert not (tmp_path / "runs" / "run_a").exists()


@pytest.mark.parametrize("shared", ["checkpoints/step-000000010-a0001", "checkpoints", ""])
def test_a_link_into_another_run_takes_nothing_of_that_run(tmp_path, shared):
    runs = tmp_path / "runs"
    kept = runs / "run_b" / "checkpoints" / "step-000000010-a0001"
    kept.mkdir(parents=True)
    (kept / "manifest.json").write_text("{}")
    (runs / "run_a" / "checkpoints").mkdir(parents=True)
    (runs / "run_a" / "checkpoints" / "step-000000010-a0001").symlink_to(runs / "run_b" / shared)
    assert run_deletion.remove_files(runs / "run_a") == []
    assert (kept / "manifest.json").exists()
    assert not (runs / "run_a").exists()


def test_what_cannot_be_removed_is_said_and_tried_again(tmp_path, monkeypatch):
    directory = tmp_path / "runs" / "run_a"
    (directory / "checkpoints").mkdir(parents=True)
    run_deletion.mark(directory)

    def refuse(path, onerror):
        onerror(None, str(path), (OSError, OSError(16, "Device or resource busy"), None))

    with monkeypatch.context() as patched:
        patched.setattr(run_deletion.shutil, "rmtree", refuse)
        (problem,) = run_deletion.remove_files(directory)
    assert "checkpoints: Device or resource busy" in problem
    assert (directory / run_deletion.MARK).exists()  # the next start tries again
    assert run_deletion.remove_files(directory) == []
    assert not directory.exists()
