"""Opening, the one writer, backups, and what a user is told when the disk or the file is bad."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from server import errors
from server.database import backups, migrate, sqlite, tables
from server.database.db import Database
from server.settings import Settings


def _add(db: Database, name: str) -> None:
    with db.write() as session:
        session.add(tables.Counter(name=name, run="", label="", value=1.0))


def _add_many(db: Database, count: int) -> None:
    for i in range(count):
        _add(db, f"counter {i}")


def _names(db: Database) -> set[str]:
    with db.read() as session:
        return {row.name for row in session.query(tables.Counter)}


def test_what_is_committed_is_read_and_what_fails_is_not(db: Database) -> None:
    _add(db, "kept")
    with pytest.raises(ZeroDivisionError):
        _fail_half_way(db)
    assert _names(db) == {"kept"}


def _fail_half_way(db: Database) -> None:
    with db.write() as session:
        session.add(tables.Counter(name="lost", run="", label="", value=1.0))
        session.flush()
        raise ZeroDivisionError


def test_a_reader_sees_one_moment_and_cannot_write(db: Database) -> None:
    with db.read() as session:
        assert session.query(tables.Counter).count() == 0
        _add(db, "later")
        assert session.query(tables.Counter).count() == 0
        with pytest.raises(Exception, match="readonly"):
            session.connection().exec_driver_sql("DELETE FROM counters")


def test_the_reader_that_was_used_last_is_used_first(db: Database) -> None:
    with db.read() as one, db.read() as two:
        connections = [s.connection().connection.dbapi_connection for s in (one, two)]
    assert connections[0] is not connections[1]
    used = set()
    for _ in range(4):
        with db.read() as session:
            used.add(id(session.connection().connection.dbapi_connection))
    assert len(used) == 1, "the others' caches stay empty"


def test_pragmas(db: Database) -> None:
    with db.write() as session:
        ask = session.connection().exec_driver_sql
        assert ask("PRAGMA journal_mode").scalar() == db.library.journal_mode.lower()
        assert ask("PRAGMA synchronous").scalar() == 2
        assert ask("PRAGMA foreign_keys").scalar() == 1
        assert ask("PRAGMA busy_timeout").scalar() == 5000


def test_on_commit_is_told_after_each_commit_and_only_then(db: Database) -> None:
    told: list[set[str]] = []
    db.on_commit(lambda: told.append(_names(db)))
    _add(db, "one")
    with pytest.raises(ZeroDivisionError), db.write():
        raise ZeroDivisionError
    _add(db, "two")
    assert told == [{"one"}, {"one", "two"}]


def test_threads_take_turns(db: Database) -> None:
    def count() -> None:
        for _ in range(20):
            with db.write() as session:
                session.connection().exec_driver_sql(
                    "INSERT INTO counters VALUES ('n', '', '', 1) "
                    "ON CONFLICT DO UPDATE SET value = value + 1"
                )

    threads = [threading.Thread(target=count) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with db.read() as session:
        assert session.query(tables.Counter).one().value == 160


def test_f27_a_database_locked_by_an_outsider_is_busy_and_recovers(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    outsider = db.library.module.connect(str(db.paths.database), isolation_level=None)
    outsider.execute("BEGIN IMMEDIATE")
    began = time.monotonic()
    with pytest.raises(errors.Busy) as caught, db.write():
        pass
    assert 4 < time.monotonic() - began < 20
    assert caught.value.headers["Retry-After"] == "1"
    outsider.execute("ROLLBACK")
    outsider.close()
    _add(db, "after")
    assert _names(db) == {"after"}


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("database is locked", errors.Busy),
        ("database or disk is full", errors.DiskFull),
        ("database disk image is malformed", errors.StorageBroken),
        ("disk I/O error", errors.StorageBroken),
        ("file is not a database", errors.StorageBroken),
    ],
)
def test_what_sqlite_says_becomes_what_a_user_can_do(said: str, kind: type[Exception]) -> None:
    told = sqlite.explain(said, ValueError(said))
    assert isinstance(told, kind)
    assert isinstance(told, errors.TraindError)
    assert told.hint


def test_f19_a_full_database_answers_507_and_goes_on_when_there_is_room(db: Database) -> None:
    _add(db, "before")
    with db.write() as session:  # SQLite's own limit stands for the full disk: the same error
        pages = session.connection().exec_driver_sql("PRAGMA page_count").scalar_one()
        session.connection().exec_driver_sql(f"PRAGMA max_page_count={pages}")
    many = [tables.Counter(name=f"{i}" * 9, run="", label="", value=1.0) for i in range(2000)]
    with pytest.raises(errors.DiskFull), db.write() as session:
        session.add_all(many)
    assert _names(db) == {"before"}
    with db.write() as session:
        session.connection().exec_driver_sql("PRAGMA max_page_count=1073741823")
    _add(db, "after")
    assert _names(db) == {"before", "after"}
    assert db.integrity_check() == []


@pytest.mark.parametrize("how", ["rm", "mv", "truncate"])
def test_f24_a_database_that_is_not_the_same_file_any_more_takes_nothing(
    db: Database, how: str
) -> None:
    _add_many(db, 500)
    db.checkpoint()
    path, kept = db.paths.database, db.paths.database.with_name("kept")
    os.link(path, kept)
    if how == "rm":
        path.unlink()
    elif how == "mv":
        copy = path.with_name("copy")
        copy.write_bytes(path.read_bytes())
        os.replace(copy, path)
    else:
        os.truncate(path, 8192)
    for ask in (lambda: _names(db), lambda: _add(db, "lost")):
        with pytest.raises(errors.StorageBroken) as caught:
            ask()
        assert caught.value.headers["Retry-After"] == "30"
        assert "restart the daemon" in (caught.value.hint or "").lower()
    if how != "truncate":  # the very file put back: it continues
        os.replace(kept, path)
        _add(db, "after")
        assert "after" in _names(db)


# --- versions ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "fixed"),
    [
        ((3, 40, 1), False), ((3, 44, 5), False), ((3, 44, 6), True), ((3, 45, 0), False),
        ((3, 50, 6), False), ((3, 50, 7), True), ((3, 51, 2), False), ((3, 51, 3), True),
        ((3, 53, 4), True), ((4, 0, 0), True),
    ],
)  # fmt: skip
def test_which_sqlite_may_use_wal(version: tuple[int, ...], fixed: bool) -> None:
    assert sqlite.has_wal_reset_fix(version) is fixed


def test_without_a_fixed_sqlite_there_is_no_wal_and_a_warning(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "has_wal_reset_fix", lambda _: False)
    db = Database.open(settings)
    _add(db, "one")
    assert db.library.journal_mode == "DELETE"
    assert "WAL-reset" in db.warnings[0]
    assert not Path(f"{db.paths.database}-wal").exists()
    db.close()


def test_a_wal_database_opens_without_wal_and_back(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    db = Database.open(settings)
    _add(db, "wal")
    db.close()
    with monkeypatch.context() as patch:
        patch.setattr(sqlite, "has_wal_reset_fix", lambda _: False)
        db = Database.open(settings)
        _add(db, "delete")
        db.close()
    db = Database.open(settings)
    assert _names(db) == {"wal", "delete"}
    db.close()


# --- refusals ------------------------------------------------------------------------------------


def test_f28_a_corrupt_database_is_refused_and_the_newest_good_backup_named(
    settings: Settings,
) -> None:
    db = Database.open(settings)
    for i in range(300):
        _add(db, f"counter {i}")
    good, torn = db.backup(), db.backup()
    db.close()
    for path in (db.paths.database, torn):
        with path.open("r+b") as file:
            file.seek(4096)
            file.write(os.urandom(path.stat().st_size - 4096))
    with pytest.raises(migrate.Refused) as caught:
        Database.open(settings)
    assert str(good) in str(caught.value)
    assert "rebuild" in str(caught.value)


def test_f28_a_database_whose_header_is_garbage_is_refused(settings: Settings) -> None:
    Database.open(settings).close()
    settings.paths.database.write_bytes(b"not a database at all" * 500)
    with pytest.raises(migrate.Refused, match="no verified backup"):
        Database.open(settings)


def test_f28_a_restored_backup_opens(settings: Settings) -> None:
    db = Database.open(settings)
    _add(db, "kept")
    backup = db.backup()
    db.close()
    settings.paths.database.write_bytes(b"garbage" * 1000)
    shutil.copy(backup, settings.paths.database)
    db = Database.open(settings)
    assert _names(db) == {"kept"}
    db.close()


def test_f32_a_directory_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(migrate.Refused, match="cannot be written"):
        Database.open(Settings(data_dir=tmp_path / "file" / "data"))


def test_f32_a_network_file_system_is_refused(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrate, "file_system", lambda path: "nfs4")
    with pytest.raises(migrate.Refused, match="network file system"):
        Database.open(settings)


def test_f32_on_a_shared_disk_the_database_lies_where_its_link_leads(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = tmp_path / "local"
    local.mkdir()
    root = settings.paths.root
    root.mkdir(parents=True, exist_ok=True)
    (root / "database").symlink_to(local)
    kinds = {root / "database": "ext4"}
    monkeypatch.setattr(migrate, "file_system", lambda path: kinds.get(path, "nfs4"))
    Database.open(settings).close()
    assert (local / "traind.db").is_file()
    assert not (root / "traind.db").exists()


def test_f32_the_innermost_mount_decides() -> None:
    mounts = [("/", "ext4"), ("/mnt", "nfs4"), ("/mnt/local", "xfs")]
    assert migrate.file_system(Path("/home/data"), mounts) == "ext4"
    assert migrate.file_system(Path("/mnt/data"), mounts) == "nfs4"
    assert migrate.file_system(Path("/mnt/local/data"), mounts) == "xfs"
    assert migrate.file_system(Path("/mntother"), mounts) == "ext4"


# --- backups and the log -------------------------------------------------------------------------


def test_a_backup_is_made_while_others_write_and_a_few_are_kept(db: Database) -> None:
    stop = threading.Event()

    def write() -> None:
        i = 0
        while not stop.is_set():
            _add(db, f"counter {(i := i + 1)}")

    thread = threading.Thread(target=write)
    thread.start()
    made = [db.backup() for _ in range(backups.KEPT + 2)]
    stop.set()
    thread.join()
    assert db.backups() == made[::-1][: backups.KEPT]
    assert all(backups.problems(db.library, path, thorough=True) == [] for path in db.backups())
    assert not list(db.paths.backups.glob("*.tmp"))


def test_f31_a_stuck_reader_cannot_make_the_log_grow_without_bound(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.database.db.WAL_CHECKPOINT_BYTES", 100_000)
    monkeypatch.setattr("server.database.db.WAL_MAX_BYTES", 400_000)
    with db.read() as session:
        session.query(tables.Counter).count()
        with pytest.raises(errors.Busy, match="read transaction"):
            _add_many(db, 2000)
        assert db.wal_bytes < 1_000_000
    _add(db, "when the reader is gone")
    assert db.wal_bytes < 100_000


@pytest.mark.parametrize("suffix", ["-wal", "-shm"])
@pytest.mark.parametrize("how", ["deleted", "replaced"])
def test_f24_the_wal_or_its_index_gone_while_open_is_noticed_and_nothing_is_lost(
    settings: Settings, suffix: str, how: str
) -> None:
    db = Database.open(settings)
    if db.library.journal_mode != "WAL":
        pytest.skip("this SQLite runs without a WAL")
    _add(db, "acknowledged")
    beside = Path(f"{settings.paths.database}{suffix}")
    beside.unlink()
    if how == "replaced":
        beside.write_bytes(b"")
    for _ in range(2):
        with pytest.raises(errors.StorageBroken, match=f"traind.db{suffix} was deleted") as caught:
            _names(db)
        assert "acknowledged changes are in the database" in caught.value.detail
        with pytest.raises(errors.StorageBroken):
            _add(db, "never taken")
    db.close()
    again = Database.open(settings)
    assert _names(again) == {"acknowledged"}
    assert again.integrity_check() == []
    again.close()


_CUT_WHILE_OPEN = """
import os, sys
from pathlib import Path
from server import errors
from server.database.db import Database
from server.settings import Settings
from tests.server.test_db import _add

settings = Settings(data_dir=Path(sys.argv[1]))
db = Database.open(settings)
_add(db, "first")
db.checkpoint()
_add(db, "second")
wal = f"{settings.paths.database}-wal"
size = os.path.getsize(wal)
match sys.argv[2]:
    case "emptied":
        os.truncate(wal, 0)
    case "halved":
        os.truncate(wal, size // 2)
    case "overwritten":
        Path(wal).write_bytes(b"x" * (size + 50_000))
for action in (lambda: _add(db, "third"), lambda: db.read().__enter__()):
    try:
        action()
    except errors.StorageBroken as error:
        print(error.detail)
db.close()
"""


@pytest.mark.parametrize("how", ["emptied", "halved", "overwritten"])
def test_f24_a_wal_cut_or_overwritten_in_place_is_noticed_and_ruins_no_database(
    settings: Settings, how: str
) -> None:
    """Without that, what is committed next lands in a broken WAL, and closing copies its garbage
    into the database. In a process of its own: SQLite shares the index within one."""
    if sqlite.choose_library().journal_mode != "WAL":
        pytest.skip("this SQLite runs without a WAL")
    root = str(settings.paths.root)
    ended = subprocess.run(
        [sys.executable, "-c", _CUT_WHILE_OPEN, root, how], capture_output=True, text=True
    )
    assert ended.stdout.count("traind.db-wal was truncated or overwritten") == 2, ended.stderr
    again = Database.open(settings)
    assert _names(again) == {"first"}
    assert again.integrity_check() == []
    again.close()


def test_the_wal_stays_the_same_file_through_checkpoints_and_other_connections(
    db: Database,
) -> None:
    for number in range(20):
        _add(db, f"{number}")
        db.checkpoint()
        outsider = db.library.module.connect(str(db.paths.database))
        outsider.execute("SELECT count(*) FROM counters").fetchall()
        outsider.close()
    db._reader.dispose()
    db._writer.dispose()
    assert len(_names(db)) == 20
