"""Split names: the words that mean train, validation and test."""

from __future__ import annotations

import re
from typing import Literal

SplitName = Literal["train", "validation", "test"]
_WORDS: dict[str, SplitName] = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
    "eval": "test",
    "evaluation": "test",
    "heldout": "test",
    "holdout": "test",
}
_BETWEEN = re.compile(r"[-._\d]+")
_FIRST_WORD = re.compile(r"[-._\d\s]+")


def kind_of(name: str) -> SplitName | None:
    """The split that a file, folder or split name means; words are separated by `-._` and digits.

    A space ends only the first word: "test set.txt" is a split, "The Test.txt" a book.
    """
    lower = name.lower().replace("held-out", "heldout").replace("held_out", "heldout")
    words = [*_BETWEEN.split(lower), _FIRST_WORD.split(lower, maxsplit=1)[0]]
    kinds = [_WORDS[word] for word in words if word in _WORDS]
    for kind in ("test", "validation", "train"):
        if kind in kinds:
            return kind
    return None
