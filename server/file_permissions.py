"""File permissions of the data directory: files 0600, directories 0700.

Notices, orders, specs and the database contain the addresses of `notify`, which may include
credentials. The umask makes new files of the daemon and its trainers private; at startup, existing
files (from an earlier version or a copy) are made private. Links are followed only for runs and
jobs, which may be moved to another disk: other linked files may belong to other users.
"""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

UMASK = 0o077

log = logging.getLogger("traind")


def begin() -> None:
    """Set the umask, so that new files of this process and its children are private."""
    os.umask(UMASK)


def tighten(root: Path) -> int:
    """Remove the permissions of group and others below `root`. Returns the number of files and
    directories changed."""
    changed, refused = 0, []
    for path in _everything(root):
        try:
            changed += _close(path)
        except FileNotFoundError:
            continue
        except OSError as error:  # owned by another user, or on a file system without modes
            refused.append(f"{path} ({error.strerror})")
    if changed:
        log.info("made %d files and directories in %s private to their owner", changed, root)
    if refused:
        log.warning(
            "could not make %d files and directories private, so other users may be able to read "
            "them; the first one: %s", len(refused), refused[0],
        )  # fmt: skip
    return changed


def _everything(root: Path) -> Iterator[Path]:
    for top in _tops(root):
        for directory, _, names in os.walk(top):
            yield Path(directory)
            yield from (Path(directory, name) for name in names)


def _tops(root: Path) -> Iterator[Path]:
    """The root, and linked directories outside it: runs, jobs and single ones of them."""
    yield root
    linked = [root / "runs", root / "jobs", *_entries(root / "runs"), *_entries(root / "jobs")]
    yield from (path.resolve() for path in linked if path.is_symlink() and path.is_dir())


def _entries(directory: Path) -> list[Path]:
    with suppress(OSError):
        return list(directory.iterdir())
    return []


def _close(path: Path) -> bool:
    """Remove the permissions of group and others. True if there were any. Skips links."""
    mode = path.lstat().st_mode
    if stat.S_ISLNK(mode) or not mode & UMASK:
        return False
    path.chmod(stat.S_IMODE(mode) & ~UMASK)
    return True
