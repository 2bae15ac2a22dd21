"""A data directory of traind 0.1 with a paused run: upgraded, moved, and resumed."""

from __future__ import annotations

import sqlite3
import tarfile
from contextlib import closing
from pathlib import Path

import migrations
from tests.conftest import FIXTURES
from tests.e2e.real_daemon import RealDaemon

RUN = "paused-in-0.1"
STEP = 73


def test_a_paused_run_of_0_1_is_resumed_after_the_upgrade(tmp_path: Path) -> None:
    with tarfile.open(FIXTURES / "traind-0.1.tar.xz") as archive:
        archive.extractall(tmp_path / "data", filter="data")
    daemon = RealDaemon(tmp_path)
    try:
        assert _revision(daemon.data_dir) == migrations.HEAD
        before = daemon.client.run(RUN)
        assert (before.state, before.step, before.metadata) == ("paused", STEP, {"made": "by 0.1"})
        loss = daemon.client.metrics(RUN, keys=["loss"]).series[0]
        assert [point[0] for point in loss.points] == list(range(STEP))
        assert daemon.client.system().backups, "a migration is preceded by a backup"
        daemon.client.resume(RUN)
        now = daemon.until(RUN, lambda p: p.step >= STEP + 20 and p.exact_resume is not None)
        # verified where the fingerprint is that of the machine it was made on
        assert now.exact_resume in ("verified", "approximate")
        checked = [e for e in daemon.client.events(RUN).data if e.kind == "resume_checked"]
        assert checked
        assert all(e.data["verdict"] != "mismatch" for e in checked)
        daemon.client.pause(RUN)
        daemon.until_state(RUN, "paused")
    finally:
        daemon.end()


def _revision(data_dir: Path) -> str:
    with closing(sqlite3.connect(data_dir / "traind.db")) as connection:
        return connection.execute("SELECT version_num FROM alembic_version").fetchone()[0]
