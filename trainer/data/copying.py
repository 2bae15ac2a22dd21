"""Copies documents into shards: shuffled in blocks of bounded size.

A block is held as at most `BLOCK_BYTES` of UTF-8, so that copying takes the same memory for a
corpus of any size and script.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from trainer.contract import durable, units
from trainer.contract.text import shown_path
from trainer.data import documents, skipped
from trainer.data.documents import Sources
from trainer.data.errors import DataError
from trainer.data.parquet import ShardWriter, TextWriter
from trainer.data.prepared import LeftOut
from trainer.data.progress import ReportProgress

LAYOUT = 2  # increment when the same sources would give other shards
BLOCK_DOCUMENTS = 50_000
# sizes that decide which text a shard holds: another value is another LAYOUT
BLOCK_BYTES = 64 * 2**20
MAX_SHARD_CHARS, MIN_SHARD_CHARS = 128 * 2**20, 256 * 2**10
SHUFFLE_SEED = 1337
VAL_EVERY = 20
MIN_CHARS = 1000
Block = list[tuple[bool, bytes]]


def copied(
    sources: Sources, corpora_dir: Path, progress: ReportProgress
) -> tuple[list[Path], list[LeftOut]]:
    """(train shards followed by val.parquet, what was skipped): written now, or earlier from the
    same files."""
    key = hashlib.sha256(json.dumps([LAYOUT, sources.source, sources.listing()]).encode())
    index = corpora_dir / "index" / f"{key.hexdigest()}.json"
    remembered = _cached(index)
    if remembered is None:
        directory = _write_corpus(sources, corpora_dir, progress)
        left = [entry.model_dump() for entry in sources.left.entries()]
        remembered = {"directory": directory.name, "left_out": left}
        durable.write_shared(index, json.dumps(remembered).encode())
    paths = sorted((corpora_dir / remembered["directory"]).glob("*.parquet"))
    return paths, [LeftOut.model_validate(entry) for entry in remembered["left_out"]]


def _cached(index: Path) -> dict | None:
    try:
        found = json.loads(index.read_bytes())
        whole = (index.parent.parent / found["directory"] / "val.parquet").exists()
    except (OSError, ValueError, KeyError):
        return None
    return found if whole and "left_out" in found else None


def _write_corpus(sources: Sources, corpora_dir: Path, progress: ReportProgress) -> Path:
    """Write shards to a temporary folder, renamed when it is complete."""
    _sweep(corpora_dir)
    work = corpora_dir / f".{sources.source}-{os.getpid()}.writing"
    work.mkdir()
    try:
        digest = _write_shards(sources, work, progress)
        target = corpora_dir / f"{sources.source}-{digest[:16]}"
        try:
            durable.put_in_place(work, target)
        except OSError:
            if not (target / "val.parquet").exists():  # else: the same text, copied before
                raise
        return target
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _sweep(corpora_dir: Path) -> None:
    """Remove folders whose writer was killed."""
    for left in corpora_dir.glob(".*.writing"):
        writer = left.name.removesuffix(".writing").rpartition("-")[2]
        if writer.isdigit() and not durable.alive(int(writer)):
            shutil.rmtree(left, ignore_errors=True)


def _write_shards(sources: Sources, work: Path, progress: ReportProgress) -> str:
    """Train shards and val.parquet; returns the sha256 of all text in order."""
    digest = hashlib.sha256(f"layout {LAYOUT}".encode())
    total = sources.total_bytes() or 1
    shard_chars = min(MAX_SHARD_CHARS, max(MIN_SHARD_CHARS, total // 4))
    train = ShardWriter(work, shard_chars)
    val = TextWriter(work / "val.parquet")
    for block in _shuffled_blocks(sources, _showing(sources, total, progress)):
        for is_val, text in block:
            digest.update(text + (b"\0v" if is_val and sources.validation else b"\0"))
            (val if is_val else train).add(text.decode())
        block.clear()
    train.close()
    val.close()
    _require_enough(sources, train, val)
    return digest.hexdigest()


def _left_out(sources: Sources) -> str:
    """A likely reason for too little text, such as archives that have to be unpacked first."""
    left = skipped.sentences(sources.left.entries())
    return f". {'; '.join(left)}" if left else ""


def _require_enough(sources: Sources, train: ShardWriter, val: TextWriter) -> None:
    chars, number = train.chars + val.chars, train.documents + val.documents
    if chars < MIN_CHARS or not train.documents or not val.documents:
        raise DataError(
            "corpus_too_small" if chars else "no_text",
            f"{sources.root} holds {chars:,} characters of text in {number} documents "
            f"({train.documents} for training); at least {MIN_CHARS:,} characters, and one "
            "document each for training and validation, are needed" + _left_out(sources),
            sources.root,
        )


def _showing(sources: Sources, total: int, progress: ReportProgress) -> Callable[[int], None]:
    def show(done: int) -> None:
        words = f"{units.num_bytes(done)} of {units.num_bytes(total)}"
        progress(min(1.0, done / total), f"copying {shown_path(sources.root)}: {words}")

    return show


def _shuffled_blocks(sources: Sources, show: Callable[[int], None]) -> Iterator[Block]:
    """Documents in blocks, shuffled within: neighbours in a file are not neighbours in a batch."""
    order = random.Random(SHUFFLE_SEED)
    block: Block = []
    held = 0
    for number, document in enumerate(documents.read(sources, show)):
        is_val = document.is_validation
        if is_val is None:
            is_val = number % VAL_EVERY == VAL_EVERY // 2
        text = document.text.encode()
        block.append((is_val, text))
        held += len(text)
        if len(block) == BLOCK_DOCUMENTS or held >= BLOCK_BYTES:
            order.shuffle(block)
            yield block
            block, held = [], 0
    if sources.validation is None and len(block) > 1 and not any(is_val for is_val, _ in block):
        block[-1] = (True, block[-1][1])
    order.shuffle(block)
    yield block
