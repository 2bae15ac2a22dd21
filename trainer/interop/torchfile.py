"""Opens untrusted `.pt` files: size limits first, then weights-only loading.

A `.pt` file is a zip archive with a pickle inside. `torch.load(weights_only=True)` refuses every
global except tensors but does not limit sizes, so `torch_archive` checks the file first.
"""

from __future__ import annotations

import stat
import warnings
from pathlib import Path
from typing import Any

import torch

from trainer.data import torch_archive
from trainer.data.errors import reason
from trainer.interop.errors import InteropError


def load(path: Path, root: Path, max_bytes: int) -> Any:
    """Load the object in `path` (tensors, dicts, lists, numbers, strings). Raises InteropError.

    root: the folder that the user named; refuses a link that leads out of it.
    """
    check_file(path, root, max_bytes)
    try:
        num_bytes = torch_archive.check(path, max_bytes)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loaded = torch.load(path, map_location="cpu", weights_only=True)
        torch_archive.check_tensors(loaded, num_bytes)
    except torch_archive.ArchiveRefused as error:
        raise InteropError(path, str(error)) from None
    except Exception as error:  # a damaged pickle may raise anything
        raise InteropError(path, f"is not a plain tensor file ({reason(error)})") from None
    return loaded


def check_file(path: Path, root: Path, max_bytes: int) -> None:
    """Check for a regular, non-empty file of at most max_bytes inside root. Raises InteropError."""
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


def compare_keys(path: Path, what: str, found: set, wanted: set) -> None:
    """Raises InteropError with the first few missing or unexpected keys."""
    if missing := sorted(map(str, wanted - found)):
        raise InteropError(path, f"{what} missing: {', '.join(missing[:5])}")
    if extra := sorted(map(str, found - wanted)):
        raise InteropError(path, f"{what} the model does not have: {', '.join(extra[:5])[:300]}")


def checked(
    path: Path, name: str, tensor: Any, size: tuple[int, ...], dtypes: tuple[torch.dtype, ...]
) -> torch.Tensor:
    """Check a tensor and return a private contiguous copy. Raises InteropError."""
    if not isinstance(tensor, torch.Tensor) or tensor.layout != torch.strided:
        raise InteropError(path, f"{name} is not a plain tensor")
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
