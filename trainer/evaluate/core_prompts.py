"""CORE prompts: from a task's items to token sequences and scored spans (docs/recipe.md).

Pure. An item that cannot be scored raises Unscorable, whose message is reported.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from trainer.evaluate.core_bundle import Task

SHUFFLE_SEED = 1337
FEWSHOT_SEED = 1234


class Unscorable(Exception):
    """The item cannot be scored: it counts as wrong and is reported with this reason."""


class Encoder(Protocol):
    """Interface of the tokenizer for CORE, as trainer.data.tokenizer.Tokenizer has it."""

    def encode_batch(
        self, texts: Sequence[str], bos: bool = False, threads: int | None = None
    ) -> list[np.ndarray]: ...


@dataclass(frozen=True)
class ScoredPrompt:
    """Token ids, <|bos|> first; the tokens [start, end) are scored, each from those before it."""

    ids: np.ndarray
    start: int
    end: int

    @property
    def read(self) -> np.ndarray:
        """The tokens to forward: the last scored token predicts nothing."""
        return self.ids[: self.end - 1]


@dataclass(frozen=True)
class Item:
    """One item. prompts: one per choice or context, in order; a single one for language modelling.

    gold: index of the right prompt; None if every scored token must be predicted.
    """

    prompts: tuple[ScoredPrompt, ...]
    gold: int | None


def pool(task: Task, max_per_task: int | None) -> list[Any]:
    """The task's items as evaluated: shuffled, then cut; few-shot examples come from these."""
    items = list(task.items)
    random.Random(SHUFFLE_SEED).shuffle(items)
    return items if max_per_task is None else items[:max_per_task]


def item(task: Task, items: list[Any], index: int, encoder: Encoder, max_tokens: int) -> Item:
    """Item `index` of the pool as token sequences. Raises Unscorable."""
    texts, gold = render(task, items, index)
    try:
        ids = encoder.encode_batch(texts, bos=True, threads=1)
    except (ValueError, UnicodeError) as error:
        raise Unscorable(f"cannot be encoded: {error}") from None
    spans = _spans(task, ids)
    used = ids[1:] if task.kind == "language_modeling" else ids
    pairs = zip(used, spans, strict=True)
    return Item(tuple(_cropped(i, start, end, max_tokens) for i, (start, end) in pairs), gold)


# --- text ----------------------------------------------------------------------------------------


def render(task: Task, items: list[Any], index: int) -> tuple[list[str], int | None]:
    """The prompts of an item as text, and the index of the right one.

    Language modelling gives [without, with] its continuation.
    """
    shots = "".join(_shot(task, items[j]) + "\n\n" for j in _fewshot(task, len(items), index))
    it, delimiter = items[index], task.delimiter
    if task.kind == "multiple_choice":
        choices = _texts(it, "choices")
        query = shots + _text(it, "query") + delimiter
        return [query + choice for choice in choices], _gold(it, choices)
    if task.kind == "schema":
        contexts = _texts(it, "context_options")
        ending = delimiter + _text(it, "continuation")
        return [shots + context + ending for context in contexts], _gold(it, contexts)
    start = shots + _text(it, "context").strip() + delimiter
    return [start.strip(), start + _text(it, "continuation")], None


def _fewshot(task: Task, count: int, index: int) -> list[int]:
    """Indices of the examples shown before item `index`: drawn from all others."""
    if task.num_fewshot == 0:
        return []
    if task.num_fewshot > count - 1:
        raise Unscorable(
            f"needs {task.num_fewshot} examples, and there are {count - 1} other items"
        )
    drawn = random.Random(FEWSHOT_SEED + index).sample(range(count - 1), task.num_fewshot)
    return [j if j < index else j + 1 for j in drawn]


def _shot(task: Task, it: Any) -> str:
    try:
        if task.kind == "multiple_choice":
            choices = _texts(it, "choices")
            return _text(it, "query") + task.delimiter + choices[_gold(it, choices)]
        if task.kind == "schema":
            contexts = _texts(it, "context_options")
            return contexts[_gold(it, contexts)] + task.delimiter + _text(it, "continuation")
        return _text(it, "context").strip() + task.delimiter + _text(it, "continuation")
    except Unscorable as why:
        raise Unscorable(f"one of its examples cannot be used: {why}") from None


def _text(it: Any, key: str) -> str:
    return _as_text(_object(it).get(key), key)


def _texts(it: Any, key: str) -> list[str]:
    values = _object(it).get(key)
    if not isinstance(values, list) or not values:
        raise Unscorable(f"it has no list of {key}")
    return [_as_text(value, key) for value in values]


def _object(it: Any) -> dict[str, Any]:
    if not isinstance(it, dict):
        raise Unscorable("its line is not a JSON object")
    return it


def _as_text(value: Any, key: str) -> str:
    """The value as text; numbers in Python's format, as in nanochat's template."""
    if isinstance(value, str | int | float):
        return str(value)
    raise Unscorable(f"its {key} is not text")


def _gold(it: Any, options: list[str]) -> int:
    gold = it.get("gold")
    if not isinstance(gold, int) or isinstance(gold, bool) or not 0 <= gold < len(options):
        raise Unscorable(f"its gold is not the index of one of {len(options)} options")
    return gold


# --- tokens --------------------------------------------------------------------------------------


def _spans(task: Task, ids: list[np.ndarray]) -> list[tuple[int, int]]:
    """The half-open range of scored tokens of each prompt, before any cropping."""
    if task.kind == "multiple_choice":
        start = common_prefix(ids)
        return [(start, len(i)) for i in ids]
    if task.kind == "schema":
        length = common_prefix([i[::-1] for i in ids])
        return [(len(i) - length, len(i)) for i in ids]
    without, whole = ids
    start = len(without)
    if start > len(whole) or not np.array_equal(without, whole[:start]):
        raise Unscorable("its prompt is not a token prefix of prompt and continuation")
    return [(start, len(whole))]


def common_prefix(sequences: Sequence[np.ndarray]) -> int:
    """Number of leading tokens that all sequences share."""
    length = min(len(s) for s in sequences)
    first = sequences[0][:length]
    for other in sequences[1:]:
        differs = np.flatnonzero(first[:length] != other[:length])
        length = int(differs[0]) if len(differs) else length
    return length


def _cropped(ids: np.ndarray, start: int, end: int, max_tokens: int) -> ScoredPrompt:
    """The last max_tokens tokens. Raises Unscorable when part of the span is not predicted."""
    if start >= end:
        raise Unscorable("nothing is left to score: its options do not differ")
    away = max(0, len(ids) - max_tokens)
    if start - away < 1:
        raise Unscorable("no token precedes the scored tokens")
    return ScoredPrompt(ids[away:], start - away, end - away)
