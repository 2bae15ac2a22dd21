"""Prepares data: from a data spec to corpus, tokenizer and token cache.

Each result is cached under a key of its inputs, so preparing the same data again takes no time.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import cast

from trainer.contract import durable
from trainer.contract.plan import shards_for
from trainer.contract.spec import DataSpec, RunSpec
from trainer.data import (
    cache,
    corpora,
    packed_corpus,
    packed_rows,
    skipped,
    walk,
)
from trainer.data import tokenizer as tokenizers
from trainer.data.corpora import Corpus
from trainer.data.errors import DataChanged, DataError
from trainer.data.parquet import TextFile
from trainer.data.prepared import DataFile, PreparedData, verify, verify_file
from trainer.data.tokenizer import Tokenizer

__all__ = ["DataChanged", "DataError", "PreparedData", "prepare", "verify", "verify_file"]

READY_BYTES = 400_000_000  # parquet bytes tokenized before training starts; the rest follows later
CAP_VARIABLE = "TRAIND_TOKEN_CACHE_BYTES"
ReportStage = Callable[[str, float | None, str], None]


def prepare(
    spec: DataSpec,
    *,
    data_dir: Path,
    vocab_size: int,
    tokens_needed: int,
    sequence_len: int | None = None,
    seed_tokenizer_dir: Path | None = None,
    special_tokens: Sequence[str] = tokenizers.SPECIAL_TOKENS,
    progress: ReportStage = lambda stage, fraction, words: None,
    cache_cap_bytes: int | None = None,
    previous: PreparedData | None = None,
) -> PreparedData:
    """Prepare the data of a run: corpus, tokenizer, token cache.

    `progress(stage, fraction or None, words)`: stage is corpus, tokenizer or tokens.
    `seed_tokenizer_dir`: tokenizer of another run or an import; overrides the spec's.
    `sequence_len`: minimum length in tokens of prepacked rows.
    `special_tokens`: of a tokenizer that is trained here.
    `previous`: the run's earlier preparation: an extend keeps its corpus, and takes more shards
    of the same revision if the data comes by the shard.
    Raises DataError(code, message, path) with a plain sentence for every unusable input.
    """
    if previous is not None and previous.source != "hf":
        verify(previous)
        return previous
    corpora_dir = Path(data_dir).absolute() / "corpora"
    if spec.source == packed_rows.SOURCE:
        sizes = vocab_size, sequence_len
        return _packed(spec, corpora_dir, sizes, seed_tokenizer_dir, progress)
    collected = corpora.collect(
        spec,
        corpora_dir,
        _shards_wanted(spec, tokens_needed),
        lambda fraction, words: progress("corpus", fraction, words),
        _revision(previous),
    )
    _check_streams(spec.streams, collected)
    seed = Path(previous.tokenizer_dir) if previous else seed_tokenizer_dir
    tokenizer, directory = _tokenizer(
        spec, corpora_dir, collected, vocab_size, seed, tuple(special_tokens), progress
    )
    cap = cache_cap_bytes or int(os.environ.get(CAP_VARIABLE) or cache.DEFAULT_CAP_BYTES)
    cache_dir = corpora_dir / "tokens" / tokenizer.sha256[:32]
    counts = _build_cache(collected, cache_dir, tokenizer, cap, progress)
    return _prepared(collected, tokenizer, directory, cache_dir, cap, counts)


def _check_streams(streams: int, collected: Corpus) -> None:
    """Check that every stream has a row group, of training and of validation. Skips files that
    are not downloaded yet."""
    for split, files in (("train", collected.train_files), ("validate", collected.val_files)):
        counts = [file.num_row_groups for file in files]
        known = [count for count in counts if count is not None]
        if len(known) == len(counts) and known and max(known) < streams:
            raise DataError(
                "too_few_row_groups",
                f"data.streams is {streams}, and the files to {split} on have at most {max(known)} "
                f"row groups each: stream {max(known)} would find nothing to read. Set "
                f"data.streams to at most {max(known)}, or write the files with more row groups",
                files[0].path,
            )


def _packed(
    spec: DataSpec,
    corpora_dir: Path,
    sizes: tuple[int, int | None],
    seed: Path | None,
    progress: ReportStage,
) -> PreparedData:
    """Prepare rows that nanochat packed, without tokenizing. sizes: vocabulary, sequence length."""
    vocab_size, sequence_len = sizes
    corpora_dir.mkdir(parents=True, exist_ok=True)
    tokenizer, directory = _tokenizer(spec, corpora_dir, None, vocab_size, seed, (), progress)
    return packed_corpus.prepare(
        spec,
        tokenizer,
        directory,
        seed or walk.expanded(spec.tokenizer.path or ""),
        corpora_dir,
        sequence_len,
        lambda fraction, words: progress("corpus", fraction, words),
    )


def _shards_wanted(spec: DataSpec, tokens_needed: int) -> int | None:
    if spec.source == "hf":
        # shards_for reads nothing of a run but its data
        return shards_for(cast(RunSpec, SimpleNamespace(data=spec)), tokens_needed)
    return spec.max_shards if isinstance(spec.max_shards, int) else None


def _revision(previous: PreparedData | None) -> str | None:
    remotes = [file.remote for file in previous.train_files if file.remote] if previous else []
    return remotes[0].revision if remotes else None


# --- tokenizer -----------------------------------------------------------------------------------


def _tokenizer(
    spec: DataSpec,
    corpora_dir: Path,
    collected: Corpus | None,
    vocab_size: int,
    seed_dir: Path | None,
    special_tokens: tuple[str, ...],
    progress: ReportStage,
) -> tuple[Tokenizer, Path]:
    """The tokenizer and its folder in the data directory, named by its sha256.

    collected: the text to train one on if none is given.
    """
    root = corpora_dir / "tokenizers"
    given = seed_dir or (walk.expanded(spec.tokenizer.path) if spec.tokenizer.path else None)
    if given is None and spec.tokenizer.run:
        raise DataError(
            "tokenizer_not_found", f"the tokenizer of run '{spec.tokenizer.run}' was not found"
        )
    if given is not None:
        progress("tokenizer", None, f"loading the tokenizer in {given}")
        tokenizer = tokenizers.load_any(given)
    else:
        assert collected is not None
        tokenizer = _trained(root, collected, vocab_size, special_tokens, progress)
    if tokenizer.vocab_size != vocab_size:
        raise DataError(
            "tokenizer_mismatch",
            f"the tokenizer in {given} has {tokenizer.vocab_size:,} tokens and the model "
            f"{vocab_size:,}: set model.vocab_size to {tokenizer.vocab_size}",
            given,
        )
    directory = root / tokenizer.sha256[:32]
    if not (directory / tokenizers.FILE_NAME).exists():
        tokenizer.save(directory)
    progress("tokenizer", 1.0, f"tokenizer with {vocab_size:,} tokens ready")
    return tokenizer, directory


def _trained(
    root: Path,
    collected: Corpus,
    vocab_size: int,
    special_tokens: tuple[str, ...],
    progress: ReportStage,
) -> Tokenizer:
    """Train a tokenizer on the downloaded training files; cached by their content."""
    files = [file for file in collected.train_files if Path(file.path).exists()]
    if collected.source == "hf":
        files = files[:1]  # the number downloaded so far is random and must not affect the result
    content: list[object] = [[f.text_sha256 for f in files], vocab_size, tokenizers.SPLIT_PATTERN]
    if special_tokens != tokenizers.SPECIAL_TOKENS:
        content.append(special_tokens)
    key = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    memo = root / f"trained-{key[:32]}.json"
    try:
        return tokenizers.load(root / json.loads(memo.read_bytes())["directory"])
    except (OSError, ValueError, KeyError, DataError):
        pass
    progress("tokenizer", None, f"training a tokenizer with {vocab_size:,} tokens")
    tokenizer = tokenizers.train(_texts(files, progress), vocab_size, special_tokens)
    tokenizer.save(root / tokenizer.sha256[:32])
    durable.write_shared(memo, json.dumps({"directory": tokenizer.sha256[:32]}).encode())
    return tokenizer


def _texts(files: list[DataFile], progress: ReportStage) -> Iterator[str]:
    total, read = sum(file.num_documents or 0 for file in files) or 1, 0
    for file in files:
        text_file = TextFile(file.path, file.column)
        for group in range(text_file.num_row_groups):
            for texts in text_file.batches(group):
                yield from texts
                read += len(texts)
                progress("tokenizer", 0.5 * read / total, "training the tokenizer: reading text")
        text_file.close()


# --- token cache ---------------------------------------------------------------------------------


def _build_cache(
    collected: Corpus, cache_dir: Path, tokenizer: Tokenizer, cap: int, progress: ReportStage
) -> dict[str, int]:
    """Tokenize validation and the beginning of training; the rest is built in the background."""
    files = list(collected.val_files)
    ready = 0
    for file in collected.train_files:
        if not Path(file.path).exists() or (ready and ready + file.size > READY_BYTES):
            break
        files.append(file)
        ready += file.size
    words = f"tokenizing {sum(f.num_documents or 0 for f in files):,} documents"
    progress("tokens", 0.0, words)
    return cache.build(
        files,
        cache_dir,
        tokenizer,
        cap,
        progress=lambda fraction: progress("tokens", fraction, words),
    )


def _prepared(
    collected: Corpus,
    tokenizer: Tokenizer,
    directory: Path,
    cache_dir: Path,
    cap: int,
    counts: dict[str, int],
) -> PreparedData:
    train_tokens, exact = _count(collected.train_files, cache_dir, tokenizer, counts)
    val_tokens, _ = _count(collected.val_files, cache_dir, tokenizer, counts)
    return PreparedData(
        corpus=collected.id,
        source=collected.source,
        tokenizer_dir=str(directory),
        tokenizer_sha256=tokenizer.sha256,
        vocab_size=tokenizer.vocab_size,
        split_rule=collected.split_rule,
        train_files=collected.train_files,
        val_files=collected.val_files,
        cache_dir=str(cache_dir),
        cache_cap_bytes=cap,
        corpus_tokens=train_tokens,
        corpus_tokens_exact=exact,
        val_tokens=val_tokens,
        notes=[*collected.notes, *skipped.sentences(collected.left_out)],
        left_out=collected.left_out,
    )


def _count(
    files: list[DataFile], cache_dir: Path, tokenizer: Tokenizer, counts: dict[str, int]
) -> tuple[int, bool]:
    """(tokens of the files, True if all were counted); others are estimated by their size."""
    known = {file.text_sha256: cache.cached_tokens(file, cache_dir, tokenizer) for file in files}
    counted = [file for file in files if known[file.text_sha256] is not None]
    tokens = sum(known[f.text_sha256] or counts.get(f.text_sha256, 0) for f in counted)
    if len(counted) == len(files):
        return tokens, True
    size = sum(file.size for file in counted)
    rate = tokens / size if size else 0.5  # tokens per byte of parquet, as in climbmix shards
    return tokens + int(rate * sum(f.size for f in files if known[f.text_sha256] is None)), False
