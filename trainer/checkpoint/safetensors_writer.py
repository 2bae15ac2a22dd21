"""Safetensors writer: bytes, sha256 and fsync in one pass.

The format is Hugging Face's safetensors (8-byte little-endian header length, JSON header, data);
the library reads it. This writer exists because a durable, verified checkpoint needs the hash, the
error and the fsync of every byte written.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from trainer.contract import failpoint
from trainer.contract.durable import write_all

_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_CHUNK_BYTES = 8_000_000


def write(path: Path, tensors: Mapping[str, Tensor]) -> tuple[int, str]:
    """Write contiguous host tensors to a new file. Returns (bytes, sha256). Raises OSError."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    digest, total = hashlib.sha256(), 0
    try:
        for piece in _pieces(tensors):
            for start in range(0, len(piece), _CHUNK_BYTES):
                chunk = piece[start : start + _CHUNK_BYTES]
                failpoint.hit("checkpoint.write")
                write_all(fd, chunk)
                digest.update(chunk)
                total += len(chunk)
        failpoint.hit("checkpoint.fsync")
        os.fsync(fd)
    finally:
        os.close(fd)
    return total, digest.hexdigest()


def _pieces(tensors: Mapping[str, Tensor]) -> Iterator[memoryview]:
    header: dict[str, object] = {}
    offset = 0
    for name, tensor in tensors.items():
        end = offset + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield memoryview(len(text).to_bytes(8, "little") + text)
    for tensor in tensors.values():
        if tensor.numel():
            yield memoryview(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
