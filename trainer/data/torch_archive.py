"""Checks a `.pt` file (torch.load) before torch reads it, and the tensors read from it.

`torch.load(weights_only=True)` runs no code, but it creates any plain data a pickle describes: a
bytearray of any length from 350 bytes, storages larger than the file. Here the opcodes and the few
names of a checkpoint are the only ones allowed, and tensors must be within the file's own bytes.
"""

from __future__ import annotations

import pickletools
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

MAX_ENTRIES = 100_000
MAX_PICKLE_BYTES = 64_000_000
MAX_OPCODES = 4_000_000
_STRUCTURE = {"PROTO", "STOP", "MARK", "FRAME", "GLOBAL", "REDUCE", "BINPERSID", "BUILD"}
_MEMO = {"MEMOIZE", "BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET"}
_CONTAINERS = {"EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"}
_FILLING = {"SETITEM", "SETITEMS", "APPEND", "APPENDS"}
_TEXTS = {"BINUNICODE", "SHORT_BINUNICODE"}
_NUMBERS = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "NONE", "NEWTRUE", "NEWFALSE"}
_OPCODES = _STRUCTURE | _MEMO | _CONTAINERS | _FILLING | _TEXTS | _NUMBERS
_FUNCTIONS = frozenset(
    {
        "collections OrderedDict",
        "torch._utils _rebuild_tensor_v2",
        "torch._utils _rebuild_parameter",
        "torch Size",
        "torch device",
    }
)


class ArchiveRefused(Exception):
    """The file is not a plain checkpoint; the message completes a sentence about it."""


def check(path: Path, max_bytes: int) -> int:
    """Check an archive; returns the bytes of all its entries. Raises ArchiveRefused, OSError.

    Entries must be stored, not compressed (torch never compresses; a zip bomb does), and no bigger
    than expected.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            _check_entries(entries, max_bytes)
            for entry in entries:
                if entry.filename.endswith(".pkl"):
                    _check_opcodes(archive.read(entry))
    except (zipfile.BadZipFile, ValueError, NotImplementedError, EOFError, RuntimeError):
        raise ArchiveRefused("is damaged or cut short: no complete torch archive") from None
    return sum(entry.file_size for entry in entries)


def check_tensors(loaded: Any, num_bytes: int) -> None:
    """Raise ArchiveRefused for tensors that are larger than the bytes they came from."""
    storages: dict[int, int] = {}
    for tensor in _tensors(loaded):
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = max(storages.get(storage.data_ptr(), 0), storage.nbytes())
        if tensor.numel() * tensor.element_size() > storage.nbytes():
            raise ArchiveRefused("has a tensor that is larger than what the file holds of it")
    if sum(storages.values()) > num_bytes:
        raise ArchiveRefused(f"claims more bytes of tensors than the {num_bytes:,} that it has")


def _check_entries(entries: list[zipfile.ZipInfo], max_bytes: int) -> None:
    if len(entries) > MAX_ENTRIES:
        raise ArchiveRefused(f"has {len(entries):,} entries, which no checkpoint has")
    if len({entry.filename for entry in entries}) < len(entries):
        raise ArchiveRefused("has two entries of one name")
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise ArchiveRefused("has compressed entries, which torch never writes")
    if sum(entry.file_size for entry in entries) > max_bytes:
        raise ArchiveRefused(f"unpacks to more than the {max_bytes:,} bytes expected")
    if any(e.filename.endswith(".pkl") and e.file_size > MAX_PICKLE_BYTES for e in entries):
        raise ArchiveRefused("has an index far larger than any checkpoint's")


def _check_opcodes(content: bytes) -> None:
    for number, (opcode, argument, _) in enumerate(pickletools.genops(content)):
        if opcode.name not in _OPCODES:
            raise ArchiveRefused(f"is not a plain tensor file (pickle opcode {opcode.name})")
        if opcode.name == "GLOBAL" and not _is_known(str(argument)):
            raise ArchiveRefused(f"is not a plain tensor file (it names {str(argument)[:100]})")
        if number > MAX_OPCODES:
            raise ArchiveRefused("has an index far longer than any checkpoint's")


def _is_known(name: str) -> bool:
    module, _, attribute = name.partition(" ")
    if name in _FUNCTIONS:
        return True
    if module != "torch" and module != "torch.storage":
        return False
    is_dtype = isinstance(getattr(torch, attribute, None), torch.dtype)
    return is_dtype or (attribute.endswith("Storage") and attribute.isidentifier())


def _tensors(loaded: Any) -> Iterator[torch.Tensor]:
    """Every tensor; each container is visited once, so that cycles end."""
    seen: set[int] = set()
    waiting = [loaded]
    while waiting:
        item = waiting.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, torch.Tensor):
            yield item
        elif isinstance(item, dict):
            waiting += [*item.keys(), *item.values()]
        elif isinstance(item, list | tuple | set):
            waiting += item
