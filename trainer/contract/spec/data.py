"""The corpus, its tokenizer and how its documents are packed into rows."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints, model_validator

from trainer.contract.spec.fields import ShortText, Strict, Text, do_not_fit
from trainer.contract.splits import kind_of

MAX_STREAMS = 1024
# Sources that read each optional field of DataSpec.
SOURCES_OF_FIELD: dict[str, tuple[str, ...]] = {
    "path": ("text", "jsonl", "parquet", "nanochat_packed"),
    "name": ("hf",),
    "config": ("text", "jsonl", "parquet", "hf"),
    "split": ("text", "jsonl", "parquet", "hf"),
    "column": ("jsonl", "parquet", "hf"),
    "max_shards": ("hf",),
    "num_shards": ("nanochat_packed",),
}
SOURCES_WITH_A_PATH = SOURCES_OF_FIELD["path"]


class TokenizerSpec(Strict):
    """Tokenizer: trained on this corpus (default), loaded from a path, or another run's."""

    train: bool | None = None
    """Train a byte-level BPE tokenizer on this corpus (the default)."""
    path: Text | None = None
    """Folder with tokenizer.pkl and token_bytes.pt to load instead."""
    run: Text | None = None
    """Run (name or id) whose tokenizer is reused."""

    @model_validator(mode="after")
    def _exactly_one(self) -> TokenizerSpec:
        given = [self.path is not None, self.run is not None, bool(self.train)]
        if sum(given) == 0 and self.train is None:
            self.train = True
        elif sum(given) != 1:
            raise ValueError("give exactly one of train: true, path, run")
        return self


class DataSpec(Strict):
    """Source of the text. `path` for text, jsonl, parquet, nanochat_packed; `name` for hf.

    nanochat_packed: nanochat's pre-packed train_NNNNN.bin and val_NNNNN.bin, whose rows are read
    unchanged. num_shards: only the first N of their train shards. Their tokenizer is the one in
    `tokenizer/` below the path unless the spec names another.

    streams: independent streams of row groups that are packed separately, one for each process of
    a nanochat run; a step takes the same number of rows from each.
    """

    source: Literal["builtin", "text", "jsonl", "parquet", "hf", "nanochat_packed"] = "builtin"
    """Kind of corpus: the built-in demo text, files at `path`, or a Hugging Face data set."""
    path: Text | None = None
    """File or folder of the corpus on this machine."""
    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]+/[A-Za-z0-9._-]+$")] | None = (
        None
    )
    """Hugging Face data set as owner/name, for source hf."""
    config: ShortText | None = None
    """Config of a data set that has several; "*" takes every one."""
    split: ShortText | None = None
    """Split to train on if several are left; never one for validation or test."""
    column: ShortText | None = None
    """Parquet column or JSON key that holds the text; null is `text`."""
    max_shards: Annotated[int, Field(ge=1, le=1_000_000)] | Literal["auto"] | None = None
    """Maximum number of downloaded shards; auto derives it from the horizon; null takes all."""
    tokenizer: TokenizerSpec = TokenizerSpec()
    """Source of the tokenizer."""
    packing: Literal["best_fit", "lossless"] = "best_fit"
    """best_fit packs as nanochat does and discards cut remainders; lossless keeps them."""
    num_shards: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    """First N training shards of a packed corpus; null takes all that are present."""
    streams: Annotated[int, Field(ge=1, le=MAX_STREAMS)] = 1
    """Independent streams of row groups, as an imported run on N GPUs read them."""

    @model_validator(mode="after")
    def _source_has_its_place(self) -> DataSpec:
        if self.source in SOURCES_WITH_A_PATH and not self.path:
            raise ValueError(f"source '{self.source}' needs a path")
        if self.source == "hf" and not self.name:
            raise ValueError("source 'hf' needs a name such as 'owner/dataset'")
        if self.source == "builtin" and (self.path or self.name):
            raise ValueError("source 'builtin' takes neither path nor name")
        if self.source != "hf" and self.name:
            raise ValueError(f"name belongs to source 'hf', not '{self.source}'")
        if self.source == "builtin" and (self.config or self.split):
            raise ValueError("source 'builtin' has neither configs nor splits")
        if self.source in ("builtin", "text") and self.column:
            raise ValueError(f"source '{self.source}' has no columns")
        if self.split and kind_of(self.split) in ("validation", "test"):
            raise do_not_fit(
                ("split",),
                f"split '{self.split}' is for validation or test, which is never trained on",
            )
        return self

    @model_validator(mode="after")
    def _rows_are_packed_once(self) -> DataSpec:
        packed = self.source == "nanochat_packed"
        if self.num_shards is not None and not packed:
            raise do_not_fit(
                ("num_shards",),
                f"num_shards belongs to source 'nanochat_packed', not '{self.source}'; "
                "max_shards limits the shards of the others",
            )
        if not packed:
            return self
        for name in ("config", "split", "column"):
            if getattr(self, name) is not None:
                raise do_not_fit((name,), f"source 'nanochat_packed' has no {name}")
        if self.max_shards is not None:
            raise do_not_fit(
                ("max_shards",), "source 'nanochat_packed' takes num_shards, not max_shards"
            )
        if self.packing != "best_fit" or self.streams != 1:
            name = "packing" if self.packing != "best_fit" else "streams"
            raise do_not_fit(
                (name,),
                f"{name} cannot be chosen for source 'nanochat_packed': its rows are packed",
            )
        if self.tokenizer.train:
            if "tokenizer" in self.model_fields_set:
                raise do_not_fit(
                    ("tokenizer", "train"),
                    "source 'nanochat_packed' holds token ids, so its tokenizer cannot be trained "
                    "anew: give tokenizer.path, or nothing for the one below the data's path",
                )
            self.tokenizer = TokenizerSpec(path=f"{(self.path or '').rstrip('/')}/tokenizer")
        return self
