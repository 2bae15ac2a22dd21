"""Opening `.pt` files that somebody else wrote: sizes first, then weights-only loading, no code.

A `.pt` file is a zip archive with a pickle inside. `torch.load(weights_only=True)` refuses every
global but tensors; what it does not bound is size, so the archive is measured before it is read.
"""

from __future__ import annotations

import stat
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from trainer.interop.errors import InteropError

MAX_ENTRIES = 100_000
MAX_PICKLE_BYTES = 64 << 20


def load(path: Path, root: Path, max_bytes: int) -> Any:
    """The object in `path` (tensors, dicts, lists, numbers, strings). Raises InteropError.

    root: the folder that the user named; a link that leads out of it is refused.
    """
    check_file(path, root, max_bytes)
    _check_archive(path, max_bytes)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle raises whatever it likes
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else ""
        raise InteropError(path, f"is not a plain tensor file ({reason})") from None


def check_file(path: Path, root: Path, max_bytes: int) -> None:
    """A regular, non-empty file of at most max_bytes inside root, or InteropError."""
    try:
        real = path.resolve(strict=True)
        status = real.stat()
    except (OSError, RuntimeError):
        raise InteropError(path, "is not there or cannot be read") from None
    if not real.is_relative_to(root.resolve()):
        raise InteropError(path, f"is a link that leads out of {root}")
    if not stat.S_ISREG(status.st_mode):
        raise InteropError(path, "is not a regular file")
    if status.st_size == 0:
        raise InteropError(path, "is empty")
    if status.st_size > max_bytes:
        raise InteropError(
            path, f"has {status.st_size:,} bytes where at most {max_bytes:,} were expected"
        )


def _check_archive(path: Path, max_bytes: int) -> None:
    """Stored, not compressed (torch never compresses, a bomb does), and no bigger than expected."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, EOFError):
        raise InteropError(path, "is damaged or cut short: no complete torch archive") from None
    if len(entries) > MAX_ENTRIES:
        raise InteropError(path, f"has {len(entries):,} entries, which no checkpoint has")
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise InteropError(path, "has compressed entries, which torch never writes")
    if sum(entry.file_size for entry in entries) > max_bytes:
        raise InteropError(path, f"unpacks to more than the {max_bytes:,} bytes expected")
    if any(e.filename.endswith("data.pkl") and e.file_size > MAX_PICKLE_BYTES for e in entries):
        raise InteropError(path, "has an index far larger than any checkpoint's")


def compare_keys(path: Path, what: str, found: set, wanted: set) -> None:
    """Raises InteropError with the first few keys that are missing or too many."""
    if missing := sorted(map(str, wanted - found)):
        raise InteropError(path, f"{what} missing: {', '.join(missing[:5])}")
    if extra := sorted(map(str, found - wanted)):
        raise InteropError(path, f"{what} the model does not have: {', '.join(extra[:5])[:300]}")


def checked(
    path: Path, name: str, tensor: Any, size: tuple[int, ...], dtypes: tuple[torch.dtype, ...]
) -> torch.Tensor:
    """A private contiguous copy of a tensor that is what it should be. Raises InteropError."""
    if not isinstance(tensor, torch.Tensor) or tensor.layout != torch.strided:
        raise InteropError(path, f"{name} is no plain tensor")
    if tensor.device.type != "cpu":
        raise InteropError(path, f"{name} has no data (device {tensor.device})")
    if tuple(tensor.shape) != size:
        raise InteropError(
            path, f"{name} has shape {tuple(tensor.shape)} where the model has {size}"
        )
    if tensor.dtype not in dtypes:
        names = " or ".join(str(d).removeprefix("torch.") for d in dtypes)
        found = str(tensor.dtype).removeprefix("torch.")
        raise InteropError(path, f"{name} is {found} where {names} was expected")
    copy = tensor.detach().clone(memory_format=torch.contiguous_format)
    if not torch.isfinite(copy).all():
        raise InteropError(path, f"{name} holds numbers that are not finite")
    return copy
