"""Checks file system, integrity and schema version before the database is opened, and migrates it
in one transaction after a verified backup.
"""

from __future__ import annotations

import os
import tempfile
from contextlib import closing
from functools import cache
from importlib import metadata
from pathlib import Path

import migrations
from server.database import backups, sqlite
from server.database.sqlite import Library
from trainer.contract import failpoint
from trainer.contract.rundir import DataDir

# Larger files are not checked at every start; a corrupt page is detected when it is read.
QUICK_CHECK_BYTES = 128_000_000
NETWORK_FILE_SYSTEMS = frozenset(
    {
        "nfs", "nfs3", "nfs4", "cifs", "smbfs", "smb3", "afs", "afpfs", "webdav", "davfs",
        "ceph", "glusterfs", "lustre", "gpfs", "beegfs", "ncpfs", "fuse.sshfs",
        "fuse.glusterfs", "fuse.ceph", "fuse.s3fs", "fuse.rclone", "fuse.gcsfuse",
        "fuse.davfs2", "macfuse",
    }
)  # fmt: skip


class Refused(Exception):
    """The database cannot be opened; the message has the cause and the remedy."""


@cache
def version() -> str:
    """Version of this package, cached because it is parsed from the installed metadata."""
    try:
        return metadata.version("traind")
    except metadata.PackageNotFoundError:
        return "unreleased"


# --- the place -----------------------------------------------------------------------------------


def check_place(paths: DataDir) -> None:
    """Check the data directory. Raises Refused if read-only or on a network file system."""
    try:
        paths.root.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=paths.root, prefix=".writable-"):
            pass
    except OSError as error:
        raise Refused(
            f"The data directory {paths.root} cannot be written: {error.strerror}. Choose another "
            "one with TRAIND_DATA_DIR or --data-dir."
        ) from error
    kind = file_system(paths.database_directory)
    if kind in NETWORK_FILE_SYSTEMS:
        raise Refused(
            f"The data directory {paths.root} is on a network file system ({kind}), where file "
            "locks are unreliable. Choose a local disk with TRAIND_DATA_DIR or --data-dir; for a "
            f"cluster, make {paths.root}/database a link to a directory on a local disk."
        )


def file_system(path: Path, mounts: list[tuple[str, str]] | None = None) -> str | None:
    """The type of the file system that holds `path`; mounts: [(mount point, type)]."""
    if mounts is None:
        import psutil

        mounts = [(p.mountpoint, p.fstype) for p in psutil.disk_partitions(all=True)]
    real = os.path.realpath(path)
    holding = [m for m in mounts if os.path.commonpath([real, m[0]]) == m[0]]
    return max(holding, key=lambda m: len(m[0]))[1] if holding else None


# --- the file ------------------------------------------------------------------------------------


def check_file(library: Library, paths: DataDir) -> None:
    """Check the database file. Raises Refused if corrupt or written by a newer traind."""
    path = paths.database
    if not path.exists() or path.stat().st_size == 0:
        return
    if path.stat().st_size <= QUICK_CHECK_BYTES:
        found = backups.problems(library, path, thorough=False)
        if found:
            raise Refused(_corrupt(library, paths, found[0]))
    try:
        revision, written_by = _stamp(library, path)
    except library.module.OperationalError as error:
        raise Refused(f"The database {path} cannot be opened: {error}.") from error
    except library.module.DatabaseError as error:
        raise Refused(_corrupt(library, paths, str(error))) from error
    if revision is not None and revision not in migrations.REVISIONS:
        raise Refused(
            f"The database {path} was written by traind {written_by or 'of a newer version'} "
            f"(schema {revision}); this is traind {version()} (schema {migrations.HEAD}). Install "
            f"traind {written_by or 'that wrote it'} or newer, or choose another data directory."
        )


def check_backup(library: Library, backup: Path) -> None:
    """Check a backup before a restore. Raises Refused for a file of another program or of a newer
    traind."""
    revision, written_by = _stamp(library, backup.absolute(), "&immutable=1")
    if revision is None:
        raise Refused(f"{backup} is not a traind database. Choose another backup.")
    if revision not in migrations.REVISIONS:
        raise Refused(
            f"The backup {backup} was made by traind {written_by or 'of a newer version'} (schema "
            f"{revision}); this is traind {version()} (schema {migrations.HEAD}). Install it, "
            "or choose another backup."
        )


def _stamp(library: Library, path: Path, how: str = "") -> tuple[str | None, str | None]:
    """(schema revision, traind version that wrote it) of a database file; None if unrecorded."""
    with closing(library.module.connect(f"{path.as_uri()}?mode=ro{how}", uri=True)) as connection:
        connection.execute("PRAGMA busy_timeout=5000")
        names = {row[0] for row in connection.execute("SELECT name FROM sqlite_master")}
        revision = writer = None
        if "alembic_version" in names:
            revision = connection.execute("SELECT version_num FROM alembic_version").fetchone()
        if "meta" in names:
            writer = connection.execute(
                "SELECT value FROM meta WHERE key = 'written_by'"
            ).fetchone()
    return revision and revision[0], writer and writer[0]


def _corrupt(library: Library, paths: DataDir, said: str) -> str:
    good = backups.newest_good(library, paths)
    way_out = (
        f"The newest verified backup is {good}: `traind restore` restores it and then reads "
        "newer records from the run directories; `traind rebuild` needs no backup."
        if good
        else "There is no verified backup: `traind rebuild` recreates the database from the run "
        "directories."
    )
    return (
        f"The database {paths.database} is corrupt ({said}). {way_out} "
        "Checkpoints and journals are not affected."
    )


# --- the schema ----------------------------------------------------------------------------------


def upgrade(library: Library, paths: DataDir) -> None:
    """Migrate the schema to the current revision atomically: a kill leaves the old or the new one.

    An existing database is backed up first. Raises Refused.
    """
    path = paths.database
    there = path.exists() and path.stat().st_size > 0
    revision = _stamp(library, path)[0] if there else None
    if revision == migrations.HEAD:
        return
    if revision is not None:
        backups.make(library, paths)
    failpoint.hit("migrate.begin")
    _run_alembic(library, path)


def _run_alembic(library: Library, path: Path) -> None:
    from alembic import command  # imported only by a start that migrates
    from alembic.config import Config

    engine = sqlite.make_engine(library, path, role="migration")
    config = Config()
    scripts = str(Path(migrations.__file__).parent)
    config.set_main_option("script_location", scripts.replace("%", "%%"))  # % interpolates
    try:
        with sqlite.explained_errors(), engine.begin() as connection:
            for (leftover,) in connection.exec_driver_sql(
                "SELECT name FROM sqlite_master WHERE type = 'table' "
                "AND name LIKE '\\_alembic\\_tmp\\_%' ESCAPE '\\'"
            ).fetchall():
                connection.exec_driver_sql(f'DROP TABLE "{leftover}"')
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
            connection.exec_driver_sql(
                "INSERT OR REPLACE INTO meta (key, value) VALUES ('written_by', ?)", (version(),)
            )
            if connection.exec_driver_sql("PRAGMA foreign_key_check").fetchone():
                raise Refused(
                    "The migration breaks foreign keys; it was rolled back. Report this bug."
                )
            failpoint.hit("migrate.commit")
    finally:
        engine.dispose()
