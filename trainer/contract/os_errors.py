"""Classifies operating system errors: about the file, the process, or the disk.

A file that cannot be opened because the process has too many open files is not damaged, and one
without read permission is not missing. Code that judges a file checks here first.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator

TOO_MANY_FILES = frozenset({errno.EMFILE, errno.ENFILE})
NO_MEMORY = frozenset({errno.ENOMEM})
DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
NOT_PERMITTED = frozenset({errno.EACCES, errno.EPERM})
MISSING = frozenset({errno.ENOENT, errno.ENOTDIR})
# Not about the file itself: the same call may succeed later, or for another user.
NOT_THE_FILES = TOO_MANY_FILES | NO_MEMORY | DISK_FULL | NOT_PERMITTED | {
    errno.EINTR, errno.EAGAIN, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT, errno.EHOSTDOWN,
}  # fmt: skip


def is_about_the_file(error: OSError) -> bool:
    """True if the error is about the file itself: missing, damaged, on a broken disk."""
    return error.errno not in NOT_THE_FILES


def chain(error: BaseException) -> Iterator[BaseException]:
    """The error and its causes and contexts, outermost first."""
    seen: set[int] = set()
    now: BaseException | None = error
    while now is not None and id(now) not in seen:
        seen.add(id(now))
        yield now
        now = now.__cause__ or now.__context__
