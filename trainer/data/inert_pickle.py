"""Reads a pickled tiktoken.Encoding without executing anything from the file.

Two defences. First the opcodes are scanned, and only those that build plain data are allowed, so no
opcode that calls, imports by extension or reserves memory beyond the file reaches the unpickler.
Then `find_class` allows one name and returns an inert record for it: the real class's
`__setstate__` may access the network.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from collections import Counter
from typing import Any

from trainer.data.errors import DataError

MAX_PICKLE_BYTES = 64_000_000
MAX_OPCODES = 8_000_000
_ENCODING = ("tiktoken.core", "Encoding")
_STRUCTURE = {"PROTO", "FRAME", "STOP", "MARK", "BUILD", "NEWOBJ", "GLOBAL", "STACK_GLOBAL"}
_CONTAINERS = {"EMPTY_TUPLE", "EMPTY_DICT", "SETITEM", "SETITEMS"}
_TEXTS = {"SHORT_BINUNICODE", "BINUNICODE", "SHORT_BINBYTES", "BINBYTES"}
_NUMBERS = {"BININT", "BININT1", "BININT2", "NONE"}
_MEMO = {"MEMOIZE", "BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET"}
# one Encoding with two dictionaries; more would be a memory bomb of small objects
_AT_MOST = {"NEWOBJ": 1, "BUILD": 1, "EMPTY_DICT": 16, "EMPTY_TUPLE": 16, "GLOBAL": 1}
_PLAIN_OPCODES = _STRUCTURE | _CONTAINERS | _TEXTS | _NUMBERS | _MEMO


class InertEncoding:
    """Replaces tiktoken.Encoding: only stores the pickle's values."""

    state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Unpickler(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str) -> Any:
        if (module_name, global_name) == _ENCODING:
            return InertEncoding
        raise pickle.UnpicklingError(f"it names {module_name}.{global_name}")

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("it refers to objects outside of itself")


def read_encoding(content: bytes, path: str) -> dict[str, Any]:
    """The state of the one Encoding in a tokenizer.pkl, not yet validated.

    Raises DataError("tokenizer_refused") for anything else; runs no code from the file.
    """
    if len(content) > MAX_PICKLE_BYTES:
        raise _refused(path, f"it has {len(content):,} bytes, more than {MAX_PICKLE_BYTES:,}")
    try:
        _check_opcodes(content)
        loaded = _Unpickler(io.BytesIO(content)).load()
    except RecursionError:
        raise _refused(path, "it is nested too deeply") from None
    except Exception as error:  # a crafted file may raise nearly anything out of the unpickler
        raise _refused(path, str(error) or type(error).__name__) from None
    if not isinstance(loaded, InertEncoding) or not isinstance(loaded.state, dict):
        raise _refused(path, "it holds something other than one tiktoken Encoding")
    return loaded.state


def _check_opcodes(content: bytes) -> None:
    counts: Counter[str] = Counter()
    for number, (opcode, argument, _) in enumerate(pickletools.genops(content)):
        if opcode.name not in _PLAIN_OPCODES:
            raise pickle.UnpicklingError(f"opcode {opcode.name} has no place in a tokenizer")
        counts[opcode.name] += 1
        if counts[opcode.name] > _AT_MOST.get(opcode.name, MAX_OPCODES):
            raise pickle.UnpicklingError(f"opcode {opcode.name} is there too often")
        if opcode.name.endswith("BINPUT") and argument is not None and argument > number:
            raise pickle.UnpicklingError("it reserves memory that it does not use")
        if number > MAX_OPCODES:
            raise pickle.UnpicklingError("it is too long")


def _refused(path: str, why: str) -> DataError:
    return DataError(
        "tokenizer_refused", f"{path} is not a tokenizer that can be read: {why}", path
    )
