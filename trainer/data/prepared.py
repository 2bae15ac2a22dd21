"""Prepared data: the JSON record of a run's files and tokenizer, and its verification."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from trainer.contract import os_errors
from trainer.contract.durable import write_durably
from trainer.contract.rundir import read_document
from trainer.data import fingerprints
from trainer.data.errors import DataChanged
from trainer.data.fingerprints import FileStat


class DataRecord(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Remote(DataRecord):
    """Remote source of a file that may not be downloaded yet."""

    repo: str
    revision: str
    name: str


class DataFile(DataRecord):
    """A file as it was when the run was prepared. Counts of a parquet file are None until it is
    downloaded; num_rows is that of a packed shard.

    sha256: of every byte, or if `sampled` of the size and three blocks (fingerprints.sample); such
    a file is hashed completely in the background.
    """

    path: str
    size: int
    sha256: str
    sampled: bool = False
    mtime_ns: int | None = None
    inode: int | None = None
    ctime_ns: int | None = None
    num_documents: int | None = None
    num_row_groups: int | None = None
    num_rows: int | None = None
    num_nulls: int = 0
    column: str = "text"
    remote: Remote | None = None

    @property
    def seen(self) -> FileStat:
        """The file's stat when the run was prepared."""
        return FileStat(self.path, self.size, self.mtime_ns, self.ctime_ns, self.inode)

    @property
    def text_sha256(self) -> str:
        """Identity of the text: the file's sha256, with its column if that is not `text`."""
        if self.column == "text":
            return self.sha256
        return hashlib.sha256(f"{self.sha256} {self.column}".encode()).hexdigest()


class LeftOut(DataRecord):
    """Input skipped for one reason. first: the first such file, line or folder."""

    reason: str
    unit: str
    count: int
    first: str


class PreparedData(DataRecord):
    """Corpus, tokenizer and token cache of a run. Written once, read by every attempt."""

    version: int = 1
    corpus: str
    source: str
    tokenizer_dir: str
    tokenizer_sha256: str
    vocab_size: int
    split_rule: str
    train_files: list[DataFile]
    val_files: list[DataFile]
    cache_dir: str
    cache_cap_bytes: int
    corpus_tokens: int
    corpus_tokens_exact: bool
    val_tokens: int
    tokenizer_id: int | None = None  # nanochat's fingerprint, of the rows it packed
    notes: list[str] = []
    left_out: list[LeftOut] = []

    @property
    def corpora_dir(self) -> Path:
        """Directory of the records about corpus files."""
        return Path(self.cache_dir).parents[1]

    def files(self, split: str) -> list[DataFile]:
        return self.train_files if split == "train" else self.val_files

    def identity(self) -> str:
        """sha256 of everything the training batches depend on except packing and cursor."""
        return self._fingerprint([file.text_sha256 for file in self.train_files])

    def val_identity(self) -> str:
        """sha256 of everything val bpb depends on except the evaluation's own settings."""
        return self._fingerprint([file.text_sha256 for file in self.val_files])

    def _fingerprint(self, files: list[str]) -> str:
        content = [files, self.tokenizer_sha256, self.split_rule]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def store(path: Path, prepared: PreparedData, data_dir: Path) -> None:
    """Write data.json, with paths relative to the data directory, which may be moved.

    Raises OSError.
    """
    content = _renamed(prepared, lambda name: _inside(name, data_dir))
    write_durably(path, content.model_dump_json(indent=1).encode())


def read(path: Path, data_dir: Path) -> PreparedData:
    """Read data.json, with absolute paths. Raises OSError, Damaged.

    A document written with absolute paths in a data directory that was moved or copied since is
    read as if it had been written here.
    """
    prepared = read_document(path, PreparedData, "Remove it and resume: the data is prepared again")
    before = Path(prepared.cache_dir)
    old_root = before.parents[2] if before.is_absolute() and len(before.parents) > 3 else None
    here = _renamed(prepared, lambda name: _absolute(name, data_dir, old_root))
    return here if Path(here.tokenizer_dir).exists() or old_root is None else prepared


def _renamed(prepared: PreparedData, rename: Callable[[str], str]) -> PreparedData:
    def of(files: list[DataFile]) -> list[DataFile]:
        return [file.model_copy(update={"path": rename(file.path)}) for file in files]

    return prepared.model_copy(
        update={
            "tokenizer_dir": rename(prepared.tokenizer_dir),
            "cache_dir": rename(prepared.cache_dir),
            "train_files": of(prepared.train_files),
            "val_files": of(prepared.val_files),
        }
    )


def _inside(name: str, data_dir: Path) -> str:
    path, root = Path(name), data_dir.absolute()
    return str(path.relative_to(root)) if path.is_relative_to(root) else name


def _absolute(name: str, data_dir: Path, old_root: Path | None) -> str:
    path = Path(name)
    if old_root is not None and path.is_relative_to(old_root / "corpora"):
        path = path.relative_to(old_root)
    return str(path if path.is_absolute() else data_dir.absolute() / path)


def verify(prepared: PreparedData, deep: bool = False) -> None:
    """Raise DataChanged for the first file that is not what the run was prepared with.

    Compares size, times and inode; if they differ, the content decides. ctime is compared because
    no program can set it back, unlike mtime. `deep` hashes every file, which detects bit rot.
    """
    _verify_tokenizer(prepared)
    for file in [*prepared.train_files, *prepared.val_files]:
        if file.remote is None or Path(file.path).exists():
            verify_file(file, deep, prepared.corpora_dir)


def verify_file(file: DataFile, deep: bool = False, corpora_dir: Path | None = None) -> None:
    """Raise DataChanged unless the file exists with unchanged content.

    For a sampled file that is the sample, and every byte if it was hashed since, as recorded in
    corpora_dir.
    """
    try:
        stat = os.stat(file.path)
    except OSError as error:
        raise gone(error, file.path, "found") from None
    if stat.st_size != file.size:
        raise DataChanged(file.path, f"had {file.size:,} bytes and now has {stat.st_size:,}")
    touched = (stat.st_mtime_ns, stat.st_ino) != (file.mtime_ns, file.inode)
    touched |= file.ctime_ns not in (None, stat.st_ctime_ns)
    unknown = file.mtime_ns is None  # downloaded after the preparation and checked on arrival
    if (deep or (touched and not unknown)) and not _is_the_same(file, corpora_dir):
        raise DataChanged(file.path, "has other content than when the run was prepared")


def _verify_tokenizer(prepared: PreparedData) -> None:
    path = Path(prepared.tokenizer_dir) / "tokenizer.json"
    try:
        found = fingerprints.full(path)
    except OSError as error:
        raise gone(error, path, "read") from None
    if found != prepared.tokenizer_sha256:
        raise DataChanged(path, "is not the tokenizer this run was prepared with")


def _is_the_same(file: DataFile, corpora_dir: Path | None) -> bool:
    try:
        if not file.sampled:
            return fingerprints.full(Path(file.path)) == file.sha256
        if fingerprints.sample(file.path) != file.sha256:
            return False
        known = fingerprints.recorded(corpora_dir, file.seen) if corpora_dir else None
        return known is None or fingerprints.full(file.path) == known
    except OSError as error:
        raise gone(error, file.path, "read") from None


def gone(error: OSError, path: str | Path, verb: str) -> OSError | DataChanged:
    """DataChanged, or the error itself if it is not about the file (open files, permissions)."""
    if not os_errors.is_about_the_file(error):
        return error
    return DataChanged(path, f"cannot be {verb} any more ({error.strerror})")
