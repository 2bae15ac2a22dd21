"""Corpora: from any source to parquet shards for training and validation (docs/recipe.md).

builtin, text and jsonl are copied into shards in the data directory, so that later changes of the
sources do not affect a run. parquet shards are used in place; hf shards are downloaded. Splits by
name are kept; without such a name the last shard is validation.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from trainer.contract import durable, units
from trainer.contract.spec import DataSpec
from trainer.contract.text import shown_path
from trainer.data import contents, copying, documents, hub, splits, walk
from trainer.data.documents import Sources
from trainer.data.errors import DataError
from trainer.data.fingerprints import FileStat
from trainer.data.parquet import TEXT_COLUMN, TextFile
from trainer.data.prepared import DataFile, LeftOut
from trainer.data.progress import ReportProgress
from trainer.data.skipped import Account

KNOWN_LAYOUT = 2  # version of the memos of `describe`
PROGRESS_SECONDS = 0.5


@dataclass(frozen=True)
class Corpus:
    """A corpus: shards in order. `notes`: sentences for people."""

    id: str
    source: str
    train_files: list[DataFile]
    val_files: list[DataFile]
    notes: list[str]
    left_out: list[LeftOut] = field(default_factory=list)
    split_rule: str = splits.LAST_VALIDATES


def collect(
    spec: DataSpec,
    corpora_dir: Path,
    shards: int | None,
    progress: ReportProgress,
    revision: str | None = None,
) -> Corpus:
    """The corpus of a spec: `shards` training shards at most. Raises DataError.

    `revision` pins a data set of the hub; None takes the newest.
    """
    corpora_dir.mkdir(parents=True, exist_ok=True)
    progress = _throttled(progress)
    if spec.source == "hf":
        return _from_hub(spec, corpora_dir, shards, progress, revision)
    progress(None, f"scanning {spec.path}" if spec.path else "scanning the standard library")
    if spec.source == "parquet":
        return _from_parquet(spec, corpora_dir, shards, progress)
    sources = documents.builtin() if spec.source == "builtin" else documents.find(spec)
    return _copied(sources, corpora_dir, shards, progress)


def describe(
    path: Path, corpora_dir: Path, column: str = TEXT_COLUMN, sampled: bool = False
) -> DataFile:
    """A parquet file's counts and sha256, remembered while its stat is unchanged."""
    stat = path.stat()
    seen = [KNOWN_LAYOUT, column, str(path.absolute()), stat.st_size, stat.st_mtime_ns]
    seen += [stat.st_ctime_ns, stat.st_ino, *(["sampled"] if sampled else [])]
    memo = corpora_dir / "known" / f"{hashlib.sha256(json.dumps(seen).encode()).hexdigest()}.json"
    if memo.exists():
        try:
            known = json.loads(memo.read_bytes())
            return DataFile.model_validate({**known, "path": str(path.absolute())})
        except (ValueError, TypeError):
            pass  # a damaged memo only costs describing the file again
    text = TextFile(path, column)
    text.close()
    found = DataFile(
        path=str(path.absolute()),
        size=stat.st_size,
        sha256=contents.name_of(FileStat.of(path), corpora_dir, sampled),
        sampled=sampled,
        mtime_ns=stat.st_mtime_ns,
        inode=stat.st_ino,
        ctime_ns=stat.st_ctime_ns,
        num_documents=text.num_documents,
        num_row_groups=text.num_row_groups,
        num_nulls=text.num_nulls,
        column=column,
    )
    durable.write_shared(memo, found.model_dump_json(exclude={"path"}).encode())
    return found


def _throttled(progress: ReportProgress) -> ReportProgress:
    """Limit progress to two reports a second: one for each of a million documents is slow."""
    due = 0.0

    def paced(fraction: float | None, words: str) -> None:
        nonlocal due
        now = time.monotonic()
        if now >= due or fraction is None or fraction >= 1:
            due = now + PROGRESS_SECONDS
            progress(fraction, words)

    return paced


# --- parquet in place -----------------------------------------------------------------------


def _from_parquet(
    spec: DataSpec, corpora_dir: Path, shards: int | None, progress: ReportProgress
) -> Corpus:
    try:
        found = walk.find(spec.path or "", _is_parquet, "parquet files (*.parquet)")
    except DataError as error:
        if error.code != "no_text":
            raise
        raise _too_few(walk.expanded(spec.path or ""), 0) from None
    if found.named_itself:
        raise DataError(
            "no_validation_file",
            f"{spec.path} is one file; give a folder with at least two parquet files, of which "
            "the last in name order is for validation",
            found.files[0],
        )
    choice = splits.choose_found(found, spec)
    for index in choice.left:
        found.left.add("other_split", found.files[index])
    train = [found.files[index] for index in choice.train]
    val = [found.files[index] for index in choice.validation]
    read = _Reading(spec.column or TEXT_COLUMN, corpora_dir, progress, found.left)
    if not val:
        val = [read.last_with_rows(train, found.root)]
        train = train[: train.index(val[0])]
    train = train[:shards]
    # val bpb is compared between runs: its file is always hashed in full
    read_train = replace(read, sampled=contents.is_sampled(train))
    described = read_train.all_with_rows(train), read.all_with_rows(val)
    _require_both(*described, found.root)
    notes = [*splits.notes_on(found.root), *choice.notes]
    return _corpus("parquet", *described, notes, found.left, choice.rule)


def _is_parquet(name: str) -> bool:
    return name.lower().endswith(".parquet")


@dataclass
class _Reading:
    """Describes shards and counts those without rows, which are left out."""

    column: str
    corpora_dir: Path
    progress: ReportProgress
    left: Account
    sampled: bool = False

    def all_with_rows(self, paths: list[Path]) -> list[DataFile]:
        each = [self._with_rows(path, index / len(paths)) for index, path in enumerate(paths)]
        return [file for file in each if file is not None]

    def last_with_rows(self, paths: list[Path], root: Path) -> Path:
        """The last shard with rows, for validation, if one before it is left to train on."""
        for path in reversed(paths[1:]):
            if self._with_rows(path) is not None:
                return path
        raise _too_few(root, len(paths))

    def _with_rows(self, path: Path, fraction: float | None = None) -> DataFile | None:
        if not os.access(path, os.R_OK):
            raise DataError("path_unreadable", f"no permission to read {shown_path(path)}", path)
        self.progress(
            fraction, f"reading {shown_path(path)} ({units.num_bytes(path.stat().st_size)})"
        )
        file = describe(path, self.corpora_dir, self.column, self.sampled)
        _count(file, self.left)
        return file if file.num_documents else None


def _count(file: DataFile, left: Account) -> None:
    """Count the skipped documents of a shard, once however often it is read."""
    if not file.num_documents:
        left.add_once("no_rows", file.path)
    if file.num_nulls:
        left.add_once("null_as_empty", file.path, file.num_nulls)


def _require_both(train: list[DataFile], val: list[DataFile], root: Path) -> None:
    if not train or not val:
        raise DataError(
            "no_text",
            f"{root} holds no documents to {'validate' if train else 'train'} on: its files for "
            "that have no rows",
            root,
        )


def _too_few(root: Path, number: int) -> DataError:
    return DataError(
        "no_validation_file",
        f"{root} holds {number} parquet file{'s' * (number != 1)}; at least two are needed: the "
        "last in name order with rows is for validation, the others for training",
        root,
    )


# --- by name from the hub ------------------------------------------------------------------------


def _from_hub(
    spec: DataSpec,
    corpora_dir: Path,
    shards: int | None,
    progress: ReportProgress,
    revision: str | None,
) -> Corpus:
    """Validation and the first training shard are fetched now, the others while training."""
    name, column = spec.name or "", spec.column or TEXT_COLUMN
    progress(None, f"listing {name} on the Hugging Face hub")
    listing, notes = hub.listed(name, corpora_dir, revision)
    train, val, choice = _chosen(listing, spec)
    wanted = train[:shards]
    here = _Arriving(column, corpora_dir, progress)
    if not val:
        val, wanted = here.last(train), train[: len(train) - 1][:shards]
    val = [file for file in map(here.fetched, val) if file.num_documents]
    first = [here.fetched(wanted[0])]
    # without a sha256 from the hub a file must be downloaded to have a name in the cache
    others = [
        file.model_copy(update={"column": column})
        if file.sha256 and not Path(file.path).exists()
        else here.fetched(file)
        for file in wanted[1:]
    ]
    if shards and shards > len(wanted):
        notes.append(f"'{name}' has {len(wanted)} of the {shards} shards needed: text will repeat")
    arrived = [file for file in [*first, *others] if file.num_documents != 0]
    _require_both(arrived, val, Path(name))
    for index in choice.left:
        here.left.add("other_split", PurePosixPath(name) / _remote_name(listing.files[index]))
    return _corpus("hf", arrived, val, [*notes, *choice.notes], here.left, choice.rule)


def _chosen(
    listing: hub.Listing, spec: DataSpec
) -> tuple[list[DataFile], list[DataFile], splits.SplitChoice]:
    where = f"data set '{spec.name}'"
    if not listing.files:
        there = ", ".join(listing.others[:8]) or "nothing"
        raise DataError(
            "no_validation_file",
            f"{where} has 0 parquet files; at least two are needed (it has: {there}). "
            "Download it and use the source jsonl or text, or name a data set in parquet",
        )
    choice = splits.choose(
        [PurePosixPath(_remote_name(file)) for file in listing.files],
        where=where,
        card=listing.card,
        config=spec.config,
        split=spec.split,
        folders_are_configs=True,
    )
    train = [listing.files[index] for index in choice.train]
    if len(train) < 2 and not choice.validation:
        raise DataError(
            "no_validation_file",
            f"{where} has {len(train)} parquet files; at least two are needed, one of them for "
            "validation",
        )
    return train, [listing.files[index] for index in choice.validation], choice


def _remote_name(file: DataFile) -> str:
    return file.remote.name if file.remote else Path(file.path).name


class _Arriving:
    """Fetches shards, describes them, and counts what they leave out."""

    def __init__(self, column: str, corpora_dir: Path, progress: ReportProgress) -> None:
        self.left = Account()
        self._column, self._corpora_dir, self._progress = column, corpora_dir, progress

    def last(self, train: list[DataFile]) -> list[DataFile]:
        """The last shard with rows. Removes the shards after it from `train`, but not itself."""
        while len(train) > 1 and not self.fetched(train[-1]).num_documents:
            del train[-1]
        return train[-1:]

    def fetched(self, file: DataFile) -> DataFile:
        path = Path(file.path)
        name = _remote_name(file)

        def report(num_bytes: int) -> None:
            self._progress(min(1.0, num_bytes / max(1, file.size)), f"downloading {name}")

        if not path.exists():
            hub.fetch(file, report)
        described = describe(path, self._corpora_dir, self._column)
        if file.sha256 and described.sha256 != file.sha256:
            raise DataError("download_damaged", f"{path} is not what the hub describes", path)
        _count(described, self.left)
        return described.model_copy(update={"remote": file.remote})


# --- copies --------------------------------------------------------------------------------------


def _copied(
    sources: Sources, corpora_dir: Path, shards: int | None, progress: ReportProgress
) -> Corpus:
    paths, left = copying.copied(sources, corpora_dir, progress)
    files = [describe(path, corpora_dir) for path in paths]
    rule = sources.split_rule or splits.LAST_VALIDATES
    train, val = files[:-1][:shards], files[-1:]
    return Corpus(
        _id(sources.source, train, val), sources.source, train, val, sources.notes, left, rule
    )


def _corpus(
    source: str,
    train: list[DataFile],
    val: list[DataFile],
    notes: list[str],
    left: Account,
    rule: str | None,
) -> Corpus:
    rule = rule or splits.LAST_VALIDATES
    return Corpus(_id(source, train, val), source, train, val, notes, left.entries(), rule)


def _id(source: str, train: list[DataFile], val: list[DataFile]) -> str:
    digest = hashlib.sha256(json.dumps([f.text_sha256 for f in [*train, *val]]).encode())
    return f"{source}-{digest.hexdigest()[:16]}"
