"""File permissions of the data directory: files 0600, directories 0700.

Notices, orders, specs and the database hold the addresses of `notify`, which may carry credentials.
What this daemon and its trainers make is private by the umask; what was there before (an earlier
version, a copy) is made so at each start. Links are followed only where runs and jobs may have been
put on another disk: what else is linked into the directory may be somebody else's.
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
    """Files that this process and its children make are private from now on."""
    os.umask(UMASK)


def tighten(root: Path) -> int:
    """Take all rights from others below `root`, which comes first; how many entries had some."""
    changed, refused = 0, []
    for path in _everything(root):
        try:
            changed += _close(path)
        except FileNotFoundError:
            continue
        except OSError as error:  # of another owner, or on a file system without modes
            refused.append(f"{path} ({error.strerror})")
    if changed:
        log.info("made %d files and directories in %s private to their owner", changed, root)
    if refused:
        log.warning(
            "others may have rights to %d files and directories that cannot be made private; "
            "the first one: %s", len(refused), refused[0],
        )  # fmt: skip
    return changed


def _everything(root: Path) -> Iterator[Path]:
    for top in _tops(root):
        for directory, _, names in os.walk(top):
            yield Path(directory)
            yield from (Path(directory, name) for name in names)


def _tops(root: Path) -> Iterator[Path]:
    """The root, and the directories that links in it put elsewhere: runs, jobs, a run's own."""
    yield root
    linked = [root / "runs", root / "jobs", *_entries(root / "runs"), *_entries(root / "jobs")]
    yield from (path.resolve() for path in linked if path.is_symlink() and path.is_dir())


def _entries(directory: Path) -> list[Path]:
    with suppress(OSError):
        return list(directory.iterdir())
    return []


def _close(path: Path) -> bool:
    """Whether others had rights there; they have none now. A link is left as it is."""
    mode = path.lstat().st_mode
    if stat.S_ISLNK(mode) or not mode & UMASK:
        return False
    path.chmod(stat.S_IMODE(mode) & ~UMASK)
    return True
