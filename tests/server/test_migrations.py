"""The schema: equal to the tables, old or new after any kill, and never older than the file."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

import migrations
from server.database import migrate, sqlite, tables
from server.database.db import Database
from server.settings import Settings

ROOT = Path(migrations.__file__).parents[1]


def test_the_migrations_make_exactly_the_tables(db: Database) -> None:
    engine = sqlite.make_engine(db.library, db.paths.database, role="migration")
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, tables.Base.metadata) == []
    engine.dispose()


def test_every_index_and_option_is_that_of_the_tables(db: Database, tmp_path: Path) -> None:
    """WITHOUT ROWID and AUTOINCREMENT, which autogenerate does not compare."""
    engine = sqlite.make_engine(db.library, tmp_path / "plain.db", role="migration")
    with engine.begin() as connection:
        tables.Base.metadata.create_all(connection)
    engine.dispose()

    def schema(path: Path) -> dict[str, list[str]]:
        with closing(db.library.module.connect(str(path))) as connection:
            rows = connection.execute(
                "SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL "
                "AND name NOT LIKE 'alembic%'"
            ).fetchall()
        return {name: sorted(re.findall(r"\w+", sql)) for name, sql in rows}

    assert schema(db.paths.database) == schema(tmp_path / "plain.db")


def test_the_list_of_revisions_is_the_scripts() -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    scripts = ScriptDirectory.from_config(config)
    known = [script.revision for script in scripts.walk_revisions()][::-1]
    assert tuple(known) == migrations.REVISIONS
    assert scripts.get_current_head() == migrations.HEAD


def test_alembic_check_passes_from_the_command_line(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    Database.open(settings).close()
    monkeypatch.setenv("TRAIND_DATA_DIR", str(settings.data_dir))
    command.check(Config(str(ROOT / "alembic.ini")))


_OPEN = """
import sys
from server.database.db import Database
from server.settings import Settings
Database.open(Settings(data_dir=sys.argv[1])).close()
"""


def _open_killed_at(data_dir: Path, point: str, passes: int) -> int:
    environment = {**os.environ, "TRAIND_FAIL": f"{point}={passes}*off->1*kill"}
    arguments = [sys.executable, "-c", _OPEN, str(data_dir)]
    return subprocess.run(arguments, env=environment, check=False, cwd=ROOT).returncode


@pytest.mark.timeout(600)  # a process for each of about ninety statements
def test_f29_a_kill_at_any_statement_leaves_the_old_or_the_new_schema(tmp_path: Path) -> None:
    """In one process a fork per statement, so that each is reached: none leaves a part."""
    passes, kills = 0, 0
    while True:
        data_dir = tmp_path / str(passes)
        child = os.fork()
        if child == 0:  # the child must never return into pytest
            try:
                os.environ["TRAIND_FAIL"] = f"migrate.statement={passes}*off->1*kill"
                Database.open(Settings(data_dir=data_dir)).close()
            finally:
                os._exit(0)
        _, status = os.waitpid(child, 0)
        _check_old_or_new(data_dir)
        if not os.WIFSIGNALED(status):
            break
        kills, passes = kills + 1, passes + 1
        Database.open(Settings(data_dir=data_dir)).close()
    assert kills > 25


def _check_old_or_new(data_dir: Path) -> None:
    path = data_dir / "traind.db"
    library = sqlite.choose_library()
    if not path.exists():
        return
    with closing(library.module.connect(str(path))) as connection:
        names = {r[0] for r in connection.execute("SELECT name FROM sqlite_master")}
    if names:
        assert {"runs", "meta", "alembic_version", "points"} <= names


@pytest.mark.parametrize("point", ["migrate.begin", "migrate.commit"])
def test_f29_a_kill_around_the_migration_heals_at_the_next_start(
    settings: Settings, point: str
) -> None:
    assert _open_killed_at(settings.data_dir, point, 0) == -9
    db = Database.open(settings)
    assert db.integrity_check() == []
    db.close()


def test_f29_a_leftover_of_a_half_done_copy_is_removed(settings: Settings) -> None:
    settings.data_dir.mkdir(parents=True)
    library = sqlite.choose_library()
    with closing(library.module.connect(str(settings.paths.database))) as connection:
        connection.execute("CREATE TABLE _alembic_tmp_runs (id INTEGER)")
        connection.commit()
    db = Database.open(settings)
    with db.read() as session:
        names = session.connection().exec_driver_sql("SELECT name FROM sqlite_master").scalars()
        assert not [name for name in names if name.startswith("_alembic_tmp")]
    db.close()


def test_f29_a_database_with_rows_is_backed_up_before_it_is_changed(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    Database.open(settings).close()
    ran: list[str] = []
    monkeypatch.setattr(migrations, "HEAD", "9999")
    monkeypatch.setattr(migrate, "_run_alembic", lambda library, path: ran.append("ran"))
    db = Database.open(settings)
    assert ran == ["ran"]
    assert len(db.backups()) == 1
    db.close()


def test_f30_a_database_from_a_newer_traind_is_refused_by_name(settings: Settings) -> None:
    Database.open(settings).close()
    library = sqlite.choose_library()
    with closing(library.module.connect(str(settings.paths.database))) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
        connection.execute("UPDATE meta SET value = '7.8.9' WHERE key = 'written_by'")
        connection.commit()
    with pytest.raises(migrate.Refused, match=r"traind 7\.8\.9 \(schema 9999\)"):
        Database.open(settings)
