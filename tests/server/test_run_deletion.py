"""A deletion that was interrupted is finished; what is not marked is never touched."""

from __future__ import annotations

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
