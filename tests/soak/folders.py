"""Realistic random data folders: prepared, or refused with a sentence; nothing is lost silently.

Each document begins with the name of its file, so that the shards show which files train and which
validate; every file is either read or counted as skipped.
"""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import random
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.soak.counts import Counts
from trainer.contract.spec import DataSpec
from trainer.data.errors import DataError
from trainer.data.parquet import TextFile
from trainer.data.prepared import LeftOut

PACKING: dict[str, Callable[[bytes], bytes]] = {
    "": lambda content: content,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
}
PLAIN = ("a", "b", "part-1", "part-2")
NAMED = ("train", "train-00000-of-00002", "train-00001-of-00002", "test", "validation", "dev")
EVALUATIONS = ("test", "validation", "dev")  # by the names, not by the code under test
ODD = (".hidden", "._a", "empty", "binary", "blank")


def try_one(place: Path, counts: Counts, draw: random.Random) -> None:
    """One folder of text or JSONL, prepared as far as its shards."""
    source = draw.choice(("text", "jsonl"))
    names = draw.sample((*PLAIN, *NAMED, *ODD), draw.randrange(3, 8))
    root, written = _make(place, source, names, draw)
    counts.add("folders")
    _check(place, source, root, written, counts)


def check_splits(place: Path, counts: Counts, draw: random.Random) -> None:
    """The common layout of splits, for the control."""
    root, written = _make(place, "jsonl", list(NAMED), draw)
    _check(place, "jsonl", root, written, counts)


def _make(
    place: Path, source: str, names: Sequence[str], draw: random.Random
) -> tuple[Path, list[Path]]:
    root = place / "folder"
    shutil.rmtree(root, ignore_errors=True)
    written = []
    for name in names:
        folder = root / draw.choice(("", "", "deep"))
        ending = {"text": ".txt", "jsonl": ".jsonl"}[source]
        packing = draw.choice(list(PACKING))
        path = folder / f"{name}{ending}{packing}"
        folder.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_content(source, name, PACKING[packing], draw))
        written.append(path)
    return root, written


def _content(source: str, name: str, pack: Callable[[bytes], bytes], draw: random.Random) -> bytes:
    if name == "empty":
        return b""
    if name == "binary":
        return b"\x7fELF" + draw.randbytes(5000) if source == "text" else b"\n\n"
    if name == "blank":
        return pack(b" \n\n" * 50 if source == "text" else b'{"text": null}\n{"text": " "}\n')
    encoding = draw.choice(("utf-8", "utf-8-sig", "utf-16"))
    if source == "text":
        text = f"{name} and more words, ümlaut.\n\n" * 600
    else:
        text = "".join(json.dumps({"text": f"{name} {n} words"}) + "\n" for n in range(60))
    return pack(text.encode(encoding))


def _check(place: Path, source: str, root: Path, written: list[Path], counts: Counts) -> None:
    from trainer.data import corpora

    spec = DataSpec(source=source, path=str(root))  # pyright: ignore[reportArgumentType] - one of two
    try:
        found = corpora.collect(spec, place / "corpora", None, lambda fraction, words: None)
    except DataError as error:
        counts.add("folders refused")
        counts.expect("\n" not in error.message, f"a refusal of several lines: {error.message}")
        return
    train, val = (_first_words(files) for files in (found.train_files, found.val_files))
    tested = {word for word in train if word in EVALUATIONS}
    counts.expect(not tested, f"trained on {sorted(tested)} of {[p.name for p in written]}")
    stems = {_stem(path) for path in written}
    counts.expect(train | val <= stems, f"documents of nobody: {sorted((train | val) - stems)}")
    silent = len(written) - len(train | val) - _files(found.left_out)
    quiet = sum(_stem(path) in ("blank", "binary") and source == "jsonl" for path in written)
    quiet += sum(_stem(path) == "blank" and source == "text" for path in written)
    counts.expect(silent <= quiet, f"{silent} of {[p.name for p in written]} left out in silence")


def _first_words(files: list) -> set[str]:
    texts = (text for file in files for text in TextFile(file.path).all_texts())
    return {text.split()[0] for text in texts if text.strip()}


def _stem(path: Path) -> str:
    return path.name.partition(".txt")[0].partition(".jsonl")[0]


def _files(left: list[LeftOut]) -> int:
    return sum(entry.count for entry in left if entry.unit == "file" and entry.reason in _LEFT)


_LEFT = {"binary", "dot_file", "empty_file", "other_split"}
