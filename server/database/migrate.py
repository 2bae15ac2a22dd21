"""Checks before the database is opened (file system, integrity, schema version), then its migration
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

# A corrupt page of a larger file is found when it is read: a full check would delay every start.
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
    """The database cannot be opened; the message says why and what to do."""


@cache
def version() -> str:
    """Of this package; read once, since the installed metadata is a file to be parsed."""
    try:
        return metadata.version("traind")
    except metadata.PackageNotFoundError:
        return "unreleased"


# --- the place -----------------------------------------------------------------------------------


def check_place(paths: DataDir) -> None:
    """Raises Refused when the data directory cannot be written or lies on a network disk."""
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
            f"The data directory {paths.root} is on a network file system ({kind}), where locks "
            "cannot be trusted. Choose a local disk with TRAIND_DATA_DIR or --data-dir; for a "
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
    """Raises Refused for a corrupt database or one written by a newer traind."""
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
    """Raises Refused for a file that must not take the database's place: of another program, or of
    a newer traind."""
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
    """(schema revision, traind that wrote it) of a database file, None where it does not say."""
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
        f"The newest verified backup is {good}: `traind restore` puts it back and reads what was "
        "trained since then from the runs' directories; `traind rebuild` needs no backup."
        if good
        else "There is no verified backup: `traind rebuild` reads everything from the runs' "
        "directories."
    )
    return (
        f"The database {paths.database} is corrupt ({said}). {way_out} "
        "Checkpoints and journals are not affected."
    )


# --- the schema ----------------------------------------------------------------------------------


def upgrade(library: Library, paths: DataDir) -> None:
    """Bring the schema to the present one: old or new after any kill, never between.

    A database that has a schema is backed up first. Raises Refused.
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
    from alembic import command  # only a start that migrates pays for it
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
                raise Refused("The migration would leave rows that refer to nothing; undone.")
            failpoint.hit("migrate.commit")
    finally:
        engine.dispose()
