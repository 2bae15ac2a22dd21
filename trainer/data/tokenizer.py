"""The tokenizer: byte-level BPE, trained with rustbpe, encoded with tiktoken (docs/recipe.md).

On disk it is one JSON file, `tokenizer.json`, without pickle: the split pattern, the token bytes
in rank order (base64), the special tokens after them. nanochat's two files (tokenizer.pkl,
token_bytes.pt) are read without running any code in them, and can be written.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import tiktoken

from trainer.contract import durable
from trainer.contract.recipe import DEFAULT, RECIPES
from trainer.data import foreign_tokenizers, inert_pickle, token_bytes
from trainer.data.errors import DataError

FILE_NAME = "tokenizer.json"
PICKLE_NAME = "tokenizer.pkl"
FORMAT = "traind-tokenizer"
SPECIAL_TOKENS = RECIPES[DEFAULT].special_tokens
SPLIT_PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]++[\r\n]*"
    r"|\s*[\r\n]|\s+(?!\S)|\s+"
)
MAX_FILE_BYTES = 64_000_000
MAX_VOCAB = 1_000_000
MAX_TOKEN_BYTES = 65_536
TRAIN_CHARS_PER_DOCUMENT = 10_000
TRAIN_CHARS = 2_000_000_000
PIECE_CHARS = 50_000


class Tokenizer:
    """An immutable vocabulary with its encoder.

    `tokens[i]` are the bytes of token i; the special tokens follow, in order. `token_bytes` (V,)
    is the byte length of every token, 0 for special ones. `sha256` names the vocabulary.
    """

    def __init__(self, pattern: str, tokens: Sequence[bytes], special_tokens: Sequence[str]):
        self.pattern = pattern
        self.tokens = tuple(tokens)
        self.special_tokens = tuple(special_tokens)
        self.encoding = _build_encoding(pattern, self.tokens, self.special_tokens)
        self.vocab_size = len(self.tokens) + len(self.special_tokens)
        self.bos_id = self.special_id(SPECIAL_TOKENS[0])
        lengths = [len(token) for token in self.tokens] + [0] * len(self.special_tokens)
        self.token_bytes = np.array(lengths, dtype=np.int32)
        self.sha256 = hashlib.sha256(self.to_json()).hexdigest()

    @property
    def dtype(self) -> type[np.uint16] | type[np.uint32]:
        """The narrowest type that holds every id."""
        return np.uint16 if self.vocab_size <= 2**16 else np.uint32

    def special_id(self, name: str) -> int:
        return len(self.tokens) + self.special_tokens.index(name)

    def encode_ordinary(self, text: str) -> list[int]:
        """Token ids; text that looks like a special token is ordinary text."""
        return self.encode_array(text).tolist()

    def encode_array(self, text: str, bos: bool = False) -> np.ndarray:
        """Token ids (n,) in the narrowest dtype, preceded by `<|bos|>` if `bos`."""
        try:
            ids = self.encoding.encode_to_numpy(text, disallowed_special=())
        except BaseException as error:
            # the regex engine gives up on runs of a million spaces, in some versions with a
            # panic, which is no Exception: such a text is encoded in pieces
            gave_up = isinstance(error, ValueError) or type(error).__name__ == "PanicException"
            if not gave_up or len(text) <= PIECE_CHARS:
                raise
            pieces = [text[at : at + PIECE_CHARS] for at in range(0, len(text), PIECE_CHARS)]
            ids = np.concatenate([self.encode_array(piece) for piece in pieces])
        if not bos:
            return ids.astype(self.dtype)
        with_bos = np.empty(len(ids) + 1, dtype=self.dtype)
        with_bos[0] = self.bos_id
        with_bos[1:] = ids
        return with_bos

    def encode_batch(
        self, texts: Sequence[str], bos: bool = False, threads: int | None = None
    ) -> list[np.ndarray]:
        """`encode_array` of every text, on threads (tiktoken releases the interpreter lock)."""
        workers = threads or min(8, os.cpu_count() or 1)
        if workers == 1 or len(texts) < 8:
            return [self.encode_array(text, bos) for text in texts]
        share = -(-len(texts) // (4 * workers))
        chunks = [texts[at : at + share] for at in range(0, len(texts), share)]
        with ThreadPoolExecutor(workers) as pool:
            encoded = pool.map(lambda chunk: [self.encode_array(t, bos) for t in chunk], chunks)
            return [ids for chunk in encoded for ids in chunk]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of the ids; bytes that are not UTF-8 become U+FFFD."""
        return self.encoding.decode([int(i) for i in ids])

    def bytes_of(self, token: int) -> bytes:
        """Bytes of a token; a special token has the bytes of its name."""
        return self.encoding.decode_single_token_bytes(token)

    def to_json(self) -> bytes:
        """Content of tokenizer.json."""
        content = {
            "format": FORMAT,
            "version": 1,
            "pattern": self.pattern,
            "tokens": [base64.b64encode(token).decode() for token in self.tokens],
            "special_tokens": list(self.special_tokens),
        }
        return json.dumps(content, indent=0, ensure_ascii=True).encode()

    def save(self, directory: Path) -> Path:
        """Write tokenizer.json durably; returns its path. Raises OSError."""
        path = Path(directory) / FILE_NAME
        durable.write_shared(path, self.to_json())
        return path


def load(directory: str | Path) -> Tokenizer:
    """The tokenizer in a traind directory. Raises DataError."""
    path = Path(directory) / FILE_NAME
    try:
        content = json.loads(_read_capped(path))
        if foreign_tokenizers.is_hugging_face(content):
            raise _refused(path, foreign_tokenizers.sentence(content))
        if content["format"] != FORMAT or content["version"] != 1:
            raise ValueError(f"its format is not {FORMAT} version 1")
        tokens = [base64.b64decode(token, validate=True) for token in content["tokens"]]
        return _validated(content["pattern"], tokens, content["special_tokens"], path)
    except KeyError as error:
        raise _refused(path, f"it has no key {error}") from None
    except (ValueError, TypeError, RecursionError) as error:
        raise _refused(path, str(error)) from None


def load_any(directory: str | Path) -> Tokenizer:
    """Load traind's or nanochat's tokenizer, whichever is in the directory. Raises DataError."""
    directory = Path(directory)
    if directory.is_file():
        directory = directory.parent  # a file in the folder was given
    if (directory / FILE_NAME).exists():
        return load(directory)
    if (directory / PICKLE_NAME).exists():
        return from_nanochat(directory)
    raise DataError(
        "tokenizer_not_found",
        f"no tokenizer in {directory}: neither {FILE_NAME} nor nanochat's tokenizer.pkl is there"
        f"{foreign_tokenizers.hint(directory)}",
        directory,
    )


def train(
    texts: Iterable[str], vocab_size: int, special_tokens: Sequence[str] = SPECIAL_TOKENS
) -> Tokenizer:
    """Train a BPE tokenizer on the first 10,000 characters of each text, up to 2e9 in total.

    Raises DataError if the text does not yield enough merges for `vocab_size`.
    """
    from rustbpe import Tokenizer as Trainer  # pyright: ignore[reportAttributeAccessIssue]

    trained = Trainer()
    wanted = vocab_size - len(special_tokens)
    trained.train_from_iterator(_training_text(texts), wanted, pattern=SPLIT_PATTERN)
    ranks = {bytes(token): rank for token, rank in trained.get_mergeable_ranks()}
    if len(ranks) < wanted:
        raise DataError(
            "corpus_too_small",
            f"the corpus is too small for a vocabulary of {vocab_size:,}: its text gives "
            f"{len(ranks) + len(special_tokens):,} tokens; set model.vocab_size to at most that, "
            "or add text",
        )
    return Tokenizer(SPLIT_PATTERN, sorted(ranks, key=ranks.__getitem__), special_tokens)


def _training_text(texts: Iterable[str]) -> Iterator[str]:
    left = TRAIN_CHARS
    for text in texts:
        piece = text[:TRAIN_CHARS_PER_DOCUMENT]
        left -= len(piece)
        yield piece
        if left <= 0:
            return


# --- nanochat's files ----------------------------------------------------------------------------


def from_nanochat(directory: str | Path) -> Tokenizer:
    """Load nanochat's tokenizer.pkl, compared with its token_bytes.pt if that exists.

    The table may be either of those in `token_bytes`. Runs no code from either file. Raises
    DataError("tokenizer_refused", ...).
    """
    path = Path(directory) / PICKLE_NAME
    state = inert_pickle.read_encoding(_read_capped(path), str(path))
    ranks, special, pattern = (
        state.get(key) for key in ("mergeable_ranks", "special_tokens", "pat_str")
    )
    if not (isinstance(ranks, dict) and isinstance(special, dict) and isinstance(pattern, str)):
        raise _refused(path, "it lacks mergeable_ranks, special_tokens or pat_str")
    if not all(isinstance(rank, int) for rank in [*ranks.values(), *special.values()]):
        raise _refused(path, "a rank is not a whole number")
    if sorted([*ranks.values(), *special.values()]) != list(range(len(ranks) + len(special))):
        raise _refused(path, "its ids are not 0, 1, 2, ... without gap")
    if special and min(special.values()) != len(ranks):
        raise _refused(path, "its special tokens do not follow the merges")
    tokens = sorted(ranks, key=ranks.__getitem__)
    tokenizer = _validated(pattern, tokens, sorted(special, key=special.__getitem__), path)
    token_bytes.read_kind(tokenizer, directory)
    return tokenizer


def nanochat_id(directory: str | Path) -> int:
    """nanochat's fingerprint of a tokenizer: crc32 of tokenizer.pkl's bytes, without the sign bit.

    It identifies the file: another pickle of the same tokenizer may have another id.
    """
    return zlib.crc32(_read_capped(Path(directory) / PICKLE_NAME)) & 0x7FFFFFFF


def to_nanochat(
    tokenizer: Tokenizer, directory: str | Path, kind: token_bytes.TokenBytes = "raw"
) -> None:
    """Write tokenizer.pkl (a tiktoken.Encoding) and token_bytes.pt (int32, V) for nanochat."""
    import pickle

    import torch

    directory = Path(directory)
    durable.write_shared(directory / PICKLE_NAME, pickle.dumps(tokenizer.encoding))
    with durable.replacing(directory / token_bytes.FILE_NAME, durable.BY_UMASK) as file:
        torch.save(torch.from_numpy(token_bytes.table(tokenizer, kind).copy()), file)


# --- building and checking -----------------------------------------------------------------------


def _validated(pattern: Any, tokens: list[Any], special: list[Any], path: Path) -> Tokenizer:
    if not isinstance(pattern, str) or len(pattern) > 4096:
        raise _refused(path, "its split pattern is not a short text")
    if not all(isinstance(t, bytes) and 0 < len(t) <= MAX_TOKEN_BYTES for t in tokens):
        raise _refused(path, "a token is not a short string of bytes")
    if not all(isinstance(s, str) and 0 < len(s) <= 256 for s in special):
        raise _refused(path, "a special token is not a short text")
    if len(tokens) + len(special) > MAX_VOCAB or len(set(tokens)) != len(tokens):
        raise _refused(path, "it has too many tokens, or one twice")
    if not {bytes([byte]) for byte in range(256)} <= set(tokens):
        raise _refused(path, "it does not cover all 256 bytes")
    if SPECIAL_TOKENS[0] not in special or len(set(special)) != len(special):
        raise _refused(path, f"it has no {SPECIAL_TOKENS[0]}, or a special token twice")
    try:
        return Tokenizer(pattern, tokens, special)
    except Exception as error:  # tiktoken's own complaint about the pattern
        raise _refused(path, str(error)) from None


def _build_encoding(
    pattern: str, tokens: Sequence[bytes], special: Sequence[str]
) -> tiktoken.Encoding:
    return tiktoken.Encoding(
        name="rustbpe",
        pat_str=pattern,
        mergeable_ranks={token: rank for rank, token in enumerate(tokens)},
        special_tokens={name: len(tokens) + i for i, name in enumerate(special)},
    )


def _read_capped(path: Path) -> bytes:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise _refused(path, f"it is larger than {MAX_FILE_BYTES:,} bytes")
        return path.read_bytes()
    except OSError as error:
        raise DataError(
            "tokenizer_not_found", f"cannot read {path}: {error.strerror or error}", path
        ) from None


def _refused(path: Path, why: str) -> DataError:
    return DataError(
        "tokenizer_refused", f"{path} is not a tokenizer that can be read: {why}", path
    )
