"""Prepares packed shards: selects the files and the tokenizer, and checks that they match."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from trainer.contract import durable
from trainer.contract.spec import DataSpec
from trainer.data import contents, packed_rows, walk
from trainer.data import tokenizer as tokenizers
from trainer.data.errors import DataError
from trainer.data.packed_rows import ShardHeader
from trainer.data.prepared import PreparedData
from trainer.data.progress import ReportProgress
from trainer.data.tokenizer import Tokenizer

SPLIT_RULE = "rows packed by nanochat: train_*.bin in name order; val_*.bin is validation"


def prepare(
    spec: DataSpec,
    tokenizer: Tokenizer,
    tokenizer_dir: Path,
    given_dir: Path,
    corpora_dir: Path,
    sequence_len: int | None,
    progress: ReportProgress,
) -> PreparedData:
    """The data of a run on packed shards.

    tokenizer_dir: traind's copy of the tokenizer. given_dir: its source, possibly with nanochat's
    tokenizer.pkl. Raises DataError.
    """
    root = walk.expanded(spec.path or "")
    train, notes = _chosen(root, spec.num_shards)
    val = packed_rows.paths(root, "val")
    if not val:
        raise DataError(
            "no_validation_file",
            f"{root} holds no val_00000.bin, which nanochat's base_prepare writes beside the train "
            "shards",
            root,
        )
    headers = {path: packed_rows.read_header(path) for path in [*train, *val]}
    _check_alike(headers)
    header = headers[train[0]]
    if sequence_len is not None:
        packed_rows.check_row_len(train[0], header.row_len, sequence_len)
    _check_tokenizer(train[0], header, tokenizer, tokenizer_dir, [given_dir, root / "tokenizer"])
    # val bpb is compared between runs: its files are always hashed in full
    described = [
        *contents.describe(train, corpora_dir, contents.is_sampled(train), progress),
        *contents.describe(val, corpora_dir, False, progress),
    ]
    files = [
        file.model_copy(update={"num_rows": headers[path].num_rows})
        for path, file in zip([*train, *val], described, strict=True)
    ]
    return PreparedData(
        corpus=_name([file.sha256 for file in files]),
        source=packed_rows.SOURCE,
        tokenizer_dir=str(tokenizer_dir),
        tokenizer_sha256=tokenizer.sha256,
        tokenizer_id=header.tokenizer_id,
        vocab_size=tokenizer.vocab_size,
        split_rule=SPLIT_RULE,
        train_files=files[: len(train)],
        val_files=files[len(train) :],
        cache_dir=str(corpora_dir / "tokens" / tokenizer.sha256[:32]),
        cache_cap_bytes=0,
        corpus_tokens=sum(headers[path].num_rows for path in train) * header.row_len,
        corpus_tokens_exact=True,
        val_tokens=sum(headers[path].num_rows for path in val) * header.row_len,
        notes=notes,
    )


def nanochat_pickle(tokenizer_dir: str | Path, tokenizer_id: int) -> Path:
    """Path of the kept copy of the tokenizer.pkl by which nanochat recognizes its shards."""
    return Path(tokenizer_dir) / "nanochat" / str(tokenizer_id) / tokenizers.PICKLE_NAME


def _chosen(root: Path, num_shards: int | None) -> tuple[list[Path], list[str]]:
    """The first num_shards train shards, as nanochat takes them: all if there are fewer."""
    found = packed_rows.paths(root, "train")
    if not found:
        raise DataError("no_text", f"{root} holds no train_00000.bin", root)
    notes = []
    if num_shards is not None and num_shards > len(found):
        notes.append(
            f"num_shards is {num_shards:,} and {root} holds {len(found):,} train shards: all of "
            "them are used, and rows repeat after the last"
        )
    return found[:num_shards], notes


def _check_alike(headers: dict[Path, ShardHeader]) -> None:
    """Check that all shards have one packing: row length, vocabulary, tokenizer."""
    (first, one), *others = headers.items()
    for path, header in others:
        for field, words in (
            ("row_len", "rows of {:,} tokens"),
            ("vocab_size", "a vocabulary of {:,} tokens"),
            ("tokenizer_id", "the tokenizer {}"),
        ):
            found, wanted = getattr(header, field), getattr(one, field)
            if found != wanted:
                raise DataError(
                    "mixed_shards",
                    f"{path} names {words.format(found)} and {first} {words.format(wanted)}: they "
                    "were not packed together",
                    path,
                )


def _check_tokenizer(
    path: Path, header: ShardHeader, tokenizer: Tokenizer, keep_in: Path, folders: list[Path]
) -> None:
    """Check that the shards are of this tokenizer: a tokenizer.pkl with the same vocabulary has
    the id in their headers. A copy of it is kept: another pickle of it may have another id."""
    if header.vocab_size != tokenizer.vocab_size:
        raise DataError(
            "tokenizer_mismatch",
            f"{path} has a vocabulary of {header.vocab_size:,} tokens and the tokenizer "
            f"{tokenizer.vocab_size:,}",
            path,
        )
    kept = nanochat_pickle(keep_in, header.tokenizer_id)
    seen = []
    for folder in _with_pickle([kept.parent, *folders]):
        found = tokenizers.nanochat_id(folder)
        same = tokenizers.from_nanochat(folder).sha256 == tokenizer.sha256
        if found == header.tokenizer_id and same:
            durable.write_shared(kept, (folder / tokenizers.PICKLE_NAME).read_bytes())
            return
        other = "" if same else " and of other tokens"
        seen.append(f"{folder / tokenizers.PICKLE_NAME} is {found}{other}")
    what = "; ".join(seen) or f"there is no {tokenizers.PICKLE_NAME} beside it to compare with"
    raise DataError(
        "tokenizer_mismatch",
        f"{path} was packed by the tokenizer {header.tokenizer_id}: {what}. Give the folder of the "
        "tokenizer.pkl it was packed with, copied byte for byte, as data.tokenizer.path",
        path,
    )


def _with_pickle(folders: list[Path]) -> Iterator[Path]:
    for folder in dict.fromkeys(folders):
        if (folder / tokenizers.PICKLE_NAME).is_file():
            yield folder


def _name(digests: list[str]) -> str:
    return f"packed-{hashlib.sha256(json.dumps(digests).encode()).hexdigest()[:16]}"
