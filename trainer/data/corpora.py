"""Corpora: from any source to parquet shards of which the last one is validation (RECIPE 6).

builtin, text and jsonl are copied into shards of our own, so that nothing that happens to the
sources changes a run. parquet shards are used where they lie; hf shards are downloaded.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from trainer.contract.spec import DataSpec
from trainer.data import documents, durable, hub
from trainer.data.documents import Sources
from trainer.data.errors import DataError
from trainer.data.parquet import ShardWriter, TextFile, TextWriter
from trainer.data.prepared import DataFile

LAYOUT = 1  # goes up when the same sources would give other shards
SHUFFLE_DOCUMENTS = 50_000
SHUFFLE_SEED = 1337
VAL_EVERY = 20
REPORT_DOCUMENTS = 2000
MIN_CHARS = 1000
Progress = Callable[[float | None, str], None]


@dataclass(frozen=True)
class Corpus:
    """Shards in order. `notes` are sentences for people."""

    id: str
    source: str
    train_files: list[DataFile]
    val_files: list[DataFile]
    notes: list[str]


def collect(
    spec: DataSpec,
    corpora_dir: Path,
    shards: int | None,
    progress: Progress,
    revision: str | None = None,
) -> Corpus:
    """The corpus of a spec: `shards` training shards at most. Raises DataError.

    `revision` pins a data set by name; None takes what is the newest now.
    """
    corpora_dir.mkdir(parents=True, exist_ok=True)
    if spec.source == "hf":
        return _from_hub(spec, corpora_dir, shards, progress, revision)
    if spec.source == "parquet":
        return _from_parquet(Path(spec.path or ""), corpora_dir, shards, progress)
    if spec.source == "builtin":
        sources = documents.builtin()
    else:
        sources = documents.find(spec.source, spec.path or "")
    return _copied(sources, corpora_dir, shards, progress)


def describe(path: Path, corpora_dir: Path) -> DataFile:
    """A parquet file with its counts and sha256, remembered for as long as its stat stays."""
    stat = path.stat()
    seen = [str(path.absolute()), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
    memo = corpora_dir / "known" / f"{hashlib.sha256(json.dumps(seen).encode()).hexdigest()}.json"
    if memo.exists():
        try:
            return DataFile.model_validate_json(memo.read_bytes())
        except ValueError:
            pass  # a damaged memo is no more than work to do again
    text = TextFile(path)
    text.close()
    if text.num_documents == 0:
        raise DataError("no_text", f"{path} holds no documents", path)
    found = DataFile(
        path=str(path.absolute()),
        size=stat.st_size,
        sha256=durable.sha256_of(path),
        mtime_ns=stat.st_mtime_ns,
        inode=stat.st_ino,
        ctime_ns=stat.st_ctime_ns,
        num_documents=text.num_documents,
        num_row_groups=text.num_row_groups,
    )
    durable.write_bytes(memo, found.model_dump_json().encode())
    return found


# --- parquet where it lies, and by name ----------------------------------------------------------


def _from_parquet(root: Path, corpora_dir: Path, shards: int | None, progress: Progress) -> Corpus:
    root = root.expanduser()
    paths = _parquet_paths(root)
    if len(paths) < 2:
        raise DataError(
            "no_validation_file",
            f"{root} holds {len(paths)} parquet file{'s' * (len(paths) != 1)}; at least two are "
            "needed: the last in name order is for validation, the others for training",
            root,
        )
    chosen = [*paths[:-1][:shards], paths[-1]]
    files = []
    for number, path in enumerate(chosen):
        files.append(describe(path, corpora_dir))
        progress((number + 1) / len(chosen), f"read {path.name}")
    return _corpus("parquet", files[:-1], files[-1:], [])


def _parquet_paths(root: Path) -> list[Path]:
    try:
        found = sorted(p for p in root.iterdir() if p.suffix == ".parquet")
    except FileNotFoundError:
        raise DataError("path_not_found", f"{root} does not exist", root) from None
    except NotADirectoryError:
        raise DataError(
            "no_validation_file",
            f"{root} is one file; give a folder with at least two parquet files, of which the "
            "last in name order is for validation",
            root,
        ) from None
    except OSError as error:
        raise DataError("path_unreadable", f"cannot read {root}: {error.strerror}", root) from None
    for path in found:
        if not path.is_file():
            raise DataError("path_not_found", f"{path} leads to no file", path)
        if not os.access(path, os.R_OK):
            raise DataError("path_unreadable", f"no permission to read {path}", path)
    return found


def _from_hub(
    spec: DataSpec,
    corpora_dir: Path,
    shards: int | None,
    progress: Progress,
    revision: str | None,
) -> Corpus:
    """Validation and the first training shard are fetched now, the others while training."""
    name = spec.name or ""
    progress(None, f"asking the Hugging Face hub for {name}")
    listed, notes = _listed(name, corpora_dir, revision)
    if len(listed) < 2:
        raise DataError(
            "no_validation_file",
            f"data set '{name}' has {len(listed)} parquet files; at least two are needed",
        )
    train, val = listed[:-1][:shards], listed[-1]
    first, *others = train
    here = [_fetched(file, corpora_dir, progress) for file in (val, first)]
    # without a sha256 from the hub a file must be here to have a name in the cache
    others = [
        file
        if file.sha256 and not Path(file.path).exists()
        else _fetched(file, corpora_dir, progress)
        for file in others
    ]
    if shards and shards > len(train):
        notes.append(f"{shards} shards wanted, '{name}' has {len(train)}: text will repeat")
    return _corpus("hf", [here[1], *others], here[:1], notes)


def _listed(name: str, corpora_dir: Path, revision: str | None) -> tuple[list[DataFile], list[str]]:
    """What the hub lists, or without a network what it listed the last time."""
    memo = corpora_dir / "hub" / f"{name.replace('/', '--')}-{revision or 'newest'}.json"
    try:
        listed = hub.list_shards(name, corpora_dir, revision)
    except DataError as error:
        if error.code != "download_failed" or not memo.exists():
            raise
        remembered = [DataFile.model_validate(file) for file in json.loads(memo.read_bytes())]
        return remembered, [f"{error.message}; taken is what it listed before"]
    content = json.dumps([file.model_dump() for file in listed])
    durable.write_bytes(memo, content.encode())
    return listed, []


def _fetched(file: DataFile, corpora_dir: Path, progress: Progress) -> DataFile:
    path = Path(file.path)
    shown = file.remote.name if file.remote else path.name

    def tell(num_bytes: int) -> None:
        progress(min(1.0, num_bytes / max(1, file.size)), f"downloading {shown}")

    if not path.exists():
        hub.fetch(file, tell)
    described = describe(path, corpora_dir).model_copy(update={"remote": file.remote})
    if file.sha256 and described.sha256 != file.sha256:
        raise DataError("download_damaged", f"{path} is not what the hub describes", path)
    return described


# --- copies --------------------------------------------------------------------------------------


def _copied(sources: Sources, corpora_dir: Path, shards: int | None, progress: Progress) -> Corpus:
    """The shards written from these very files before, or new ones."""
    key = hashlib.sha256(json.dumps([LAYOUT, sources.source, sources.listing()]).encode())
    index = corpora_dir / "index" / f"{key.hexdigest()}.json"
    remembered = _remembered(index)
    if remembered is None:
        directory = _write_corpus(sources, corpora_dir, progress)
        remembered = {"directory": directory.name, "notes": sources.notes}
        durable.write_bytes(index, json.dumps(remembered).encode())
    paths = sorted((corpora_dir / remembered["directory"]).glob("*.parquet"))
    files = [describe(path, corpora_dir) for path in paths]
    return _corpus(sources.source, files[:-1][:shards], files[-1:], remembered["notes"])


def _remembered(index: Path) -> dict | None:
    try:
        found = json.loads(index.read_bytes())
        whole = (index.parent.parent / found["directory"] / "val.parquet").exists()
    except (OSError, ValueError, KeyError):
        return None
    return found if whole else None


def _write_corpus(sources: Sources, corpora_dir: Path, progress: Progress) -> Path:
    """Write shards to a temporary folder, which takes its name when it is complete."""
    _sweep(corpora_dir)
    work = corpora_dir / f".{sources.source}-{os.getpid()}.writing"
    work.mkdir()
    try:
        digest = _write_shards(sources, work, progress)
        target = corpora_dir / f"{sources.source}-{digest[:16]}"
        try:
            os.replace(work, target)
        except OSError:
            if not (target / "val.parquet").exists():  # else: the same text, copied before
                raise
        durable.sync_directory(corpora_dir)
        return target
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _sweep(corpora_dir: Path) -> None:
    """Remove folders whose writer was killed."""
    for left in corpora_dir.glob(".*.writing"):
        writer = left.name.removesuffix(".writing").rpartition("-")[2]
        if writer.isdigit() and not durable.alive(int(writer)):
            shutil.rmtree(left, ignore_errors=True)


def _write_shards(sources: Sources, work: Path, progress: Progress) -> str:
    """Train shards and val.parquet; returns the sha256 of all text in order."""
    digest = hashlib.sha256()
    total = sources.total_bytes() or 1
    shard_chars = min(128 << 20, max(256 << 10, total // 4))
    train = ShardWriter(work, shard_chars)
    val = TextWriter(work / "val.parquet")
    chars = 0
    for block in _shuffled_blocks(sources, total, progress):
        for is_val, text in block:
            digest.update(text.encode() + b"\0")
            chars += len(text)
            (val if is_val else train).add(text)
    train.close()
    val.close()
    if chars < MIN_CHARS or not train.documents or not val.documents:
        raise DataError(
            "corpus_too_small" if chars else "no_text",
            f"{sources.root} holds {chars:,} characters of text in "
            f"{train.documents + val.documents} documents; at least {MIN_CHARS:,} characters in "
            "two documents are needed",
            sources.root,
        )
    return digest.hexdigest()


def _shuffled_blocks(
    sources: Sources, total: int, progress: Progress
) -> Iterator[list[tuple[bool, str]]]:
    """Documents in blocks, shuffled within: neighbours in a file are not neighbours in a batch."""
    order = random.Random(SHUFFLE_SEED)
    block: list[tuple[bool, str]] = []
    for number, (text, done) in enumerate(documents.read(sources)):
        block.append((number % VAL_EVERY == VAL_EVERY // 2, text))
        if number % REPORT_DOCUMENTS == 0:
            progress(done / total, f"copying {sources.root}")
        if len(block) == SHUFFLE_DOCUMENTS:
            order.shuffle(block)
            yield block
            block = []
    if len(block) > 1 and not any(is_val for is_val, _ in block):
        block[-1] = (True, block[-1][1])
    order.shuffle(block)
    yield block


def _corpus(
    source: str,
    train: list[DataFile],
    val: list[DataFile],
    notes: list[str],
) -> Corpus:
    digest = hashlib.sha256(json.dumps([file.sha256 for file in [*train, *val]]).encode())
    return Corpus(f"{source}-{digest.hexdigest()[:16]}", source, train, val, notes)
