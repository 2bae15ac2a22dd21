"""Finds the files below a path: the same walk for text, JSONL and parquet.

Hidden files, links to folders, broken links, empty files and other kinds of files are skipped and
counted.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from trainer.contract.text import shown_path
from trainer.data.errors import DataError
from trainer.data.skipped import Account, is_utf8


@dataclass
class FoundFile:
    """Files in name order. named_itself: the path is a single file that the user named."""

    root: Path
    files: list[Path]
    left: Account = field(default_factory=Account)
    named_itself: bool = False

    def relative(self, path: Path) -> PurePosixPath:
        return PurePosixPath(path.relative_to(self.root).as_posix())


def find(path: str | Path, is_wanted: Callable[[str], bool], kind: str) -> FoundFile:
    """Find the files at a path: itself, or all below the folder whose names are wanted.

    kind: the files looked for, for the error message. Raises DataError for a path that is missing,
    unreadable or without such files.
    """
    root = expanded(path)
    _check_exists(root)
    if not root.is_dir():
        if not root.is_file():
            raise DataError("path_not_a_file", f"{root} is neither a file nor a folder", root)
        return FoundFile(root.parent, [root], named_itself=True)
    found = FoundFile(root, [])
    for folder, folders, names in os.walk(root, onerror=_unreadable):
        _choose_folders(Path(folder), folders, found.left)
        for name in names:
            candidate = Path(folder) / name
            if _is_usable(candidate, is_wanted, found.left):
                found.files.append(candidate)
    found.files.sort()
    if not found.files:
        raise DataError("no_text", f"no {kind} in {root}{_left_out_note(found)}", root)
    return found


def expanded(path: str | Path) -> Path:
    """The path with `~` and `~user` expanded. Raises DataError for an unknown user."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise DataError("path_not_found", f"{path}: {error}", path) from None


def _choose_folders(folder: Path, folders: list[str], left: Account) -> None:
    """Choose the folders to walk: hidden ones and links, which could be cyclic, are skipped."""
    for name in sorted(folders):
        if name.startswith("."):
            left.add("dot_folder", folder / name)
        elif (folder / name).is_symlink():
            left.add("linked_folder", folder / name)
    folders[:] = sorted(name for name in folders if not name.startswith("."))


def _is_usable(path: Path, is_wanted: Callable[[str], bool], left: Account) -> bool:
    try:
        why = _why_not(path, is_wanted)
    except FileNotFoundError:
        why = "broken_link"  # it was removed while the folder was read
    except OSError as error:
        raise _unreadable(error, path) from None
    if why:
        left.add(why, path)
    return why is None


def _why_not(path: Path, is_wanted: Callable[[str], bool]) -> str | None:
    if path.name.startswith("."):
        return "dot_file"
    if not is_wanted(path.name):
        return "other_kind"
    if not is_utf8(path):
        return "unreadable_name"
    if path.is_symlink() and not path.exists():
        raise DataError(
            "path_not_found", f"{shown_path(path)} is a link to something that is not there", path
        )
    if not path.is_file():
        return "not_a_file"
    return None if path.stat().st_size else "empty_file"


def _left_out_note(found: FoundFile) -> str:
    left = sum(entry.count for entry in found.left.entries())
    return f" ({left:,} other files and folders are there)" if left else ""


def _check_exists(path: Path) -> None:
    try:
        path.stat()
    except (FileNotFoundError, ValueError):
        raise DataError("path_not_found", f"{path!s} does not exist", path) from None
    except OSError as error:
        raise _unreadable(error, path) from None


def _unreadable(error: OSError, path: Path | None = None) -> DataError:
    where = path or error.filename
    raise DataError(
        "path_unreadable", f"cannot read {shown_path(where)}: {error.strerror}", where
    ) from None
