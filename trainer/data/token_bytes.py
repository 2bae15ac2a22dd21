"""Byte length of each token, for val bpb: two tables of the same vocabulary.

`raw` is the number of bytes of a token. `decoded` is the length of its text in UTF-8, where
bytes that are not UTF-8 become U+FFFD and count 3: nanochat's table before 3 July 2026. Special
tokens count 0 in both. Every vocabulary holds the 256 single bytes, so the two always differ.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from trainer.data.errors import DataError, reason

if TYPE_CHECKING:
    from trainer.data.tokenizer import Tokenizer

TokenBytes = Literal["raw", "decoded"]
FILE_NAME = "token_bytes.pt"
MAX_FILE_BYTES = 64_000_000


def table(tokenizer: Tokenizer, kind: TokenBytes = "raw") -> np.ndarray:
    """int32 (V,): bytes of each token, 0 for special ones."""
    return tokenizer.token_bytes if kind == "raw" else _decoded(tokenizer)


def _decoded(tokenizer: Tokenizer) -> np.ndarray:
    special = set(tokenizer.special_tokens)
    texts = [token.decode("utf-8", "replace") for token in tokenizer.tokens]
    lengths = [0 if text in special else len(text.encode()) for text in texts]
    return np.array(lengths + [0] * len(tokenizer.special_tokens), dtype=np.int32)


def read_kind(tokenizer: Tokenizer, directory: str | Path) -> TokenBytes | None:
    """The kind of table in nanochat's token_bytes.pt in a folder; None without the file.

    Runs no code from the file. Raises DataError("tokenizer_refused") if it is neither.
    """
    path = Path(directory) / FILE_NAME
    if not path.exists():
        return None
    lengths = _load(tokenizer, path)
    for kind in ("raw", "decoded"):
        if np.array_equal(lengths, table(tokenizer, kind)):
            return kind
    raise _refused(
        path,
        "its byte lengths are not those of tokenizer.pkl beside it, neither of the tokens' bytes "
        "nor of their text",
    )


def _load(tokenizer: Tokenizer, path: Path) -> np.ndarray:
    import torch

    from trainer.data import torch_archive

    if path.stat().st_size > MAX_FILE_BYTES:
        raise _refused(path, "it is too large for a table of token lengths")
    try:
        num_bytes = torch_archive.check(path, MAX_FILE_BYTES)
        lengths = torch.load(path, map_location="cpu", weights_only=True)
        torch_archive.check_tensors(lengths, num_bytes)
    except torch_archive.ArchiveRefused as error:
        raise _refused(path, f"it {error}") from None
    except Exception as error:  # torch raises many kinds of errors for foreign files
        raise _refused(path, reason(error)) from None
    if not isinstance(lengths, torch.Tensor) or lengths.shape != (tokenizer.vocab_size,):
        raise _refused(path, f"it is not one length for each of {tokenizer.vocab_size:,} tokens")
    return lengths.to(torch.int64).numpy()


def _refused(path: Path, why: str) -> DataError:
    return DataError(
        "tokenizer_refused", f"{path} is not a table of token lengths that can be used: {why}", path
    )
