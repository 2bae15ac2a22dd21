"""Explains why two val bpb values differ: what changed between the two measurements.

Some causes change the value of identical weights: the validation rows, the compute dtype. Others
change only the steps that follow: the training data, the learning rate at a joint, Muon.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, TypedDict

from trainer.contract import units

LR_TOLERANCE = 0.01  # relative: within a schedule one step changes the rate by less
_SPAN = ("eval_tokens", "batches", "rows", "sequence_len", "packing")


class Cause(TypedDict):
    """One change between two measurements. code: for programs; what: a clause for people."""

    code: Literal[
        "validation_data",
        "tokenizer",
        "token_bytes",
        "streams",
        "span",
        "compute_dtype",
        "program",
        "data_identity",
        "learning_rate",
        "muon",
        "unknown_settings",
    ]
    what: str
    affects: Literal["this_value", "later_steps"]


def causes(
    before: dict[str, Any],
    now: dict[str, Any],
    lr_before: float | None = None,
    lr_now: float | None = None,
) -> list[Cause]:
    """Every cause that applies, those that change this value first.

    before, now: {"identity", "settings" (span.describe), "compute_dtype", "data", "muon"}; a
    missing field was not recorded. "program": what measured before, if not this program.
    lr_*: learning rate multipliers of the last step before the joint and the first after it.
    """
    return [*_of_this_value(before, now), *_of_later_steps(before, now, lr_before, lr_now)]


def sentence(found: list[Cause]) -> str:
    """The causes in one sentence; an empty string without any."""
    return "; ".join(cause["what"] for cause in found)


def _of_this_value(before: dict[str, Any], now: dict[str, Any]) -> Iterator[Cause]:
    old, new = before.get("settings") or {}, now.get("settings") or {}
    if not old and before.get("identity") not in (None, now.get("identity")):
        what = "it was recorded under another identity, whose settings are unknown"
        yield Cause(code="unknown_settings", what=what, affects="this_value")
    if _differs(old, new, "validation"):
        what = "the validation data is not that of the recorded value"
        yield Cause(code="validation_data", what=what, affects="this_value")
    if _differs(old, new, "tokenizer"):
        what = "the tokenizer is not that of the recorded value"
        yield Cause(code="tokenizer", what=what, affects="this_value")
    if _differs(old, new, "token_bytes"):
        yield Cause(code="token_bytes", what=_byte_table(old["token_bytes"]), affects="this_value")
    if _differs(old, new, "streams"):
        what = f"its rows were packed by {_streams(old)} and now by {_streams(new)}"
        yield Cause(code="streams", what=what, affects="this_value")
    changed = [name for name in _SPAN if _differs(old, new, name)]
    if changed and not _differs(old, new, "streams"):
        words = ", ".join(f"{name} {old[name]} -> {new[name]}" for name in changed)
        yield Cause(code="span", what=f"other rows are measured: {words}", affects="this_value")
    if _differs(before, now, "compute_dtype"):
        what = f"it was computed in {before['compute_dtype']} and now in {now['compute_dtype']}"
        yield Cause(code="compute_dtype", what=what, affects="this_value")
    if before.get("program"):
        what = f"it was measured by {before['program']}, whose kernels round differently"
        yield Cause(code="program", what=what, affects="this_value")


def _of_later_steps(
    before: dict[str, Any], now: dict[str, Any], lr_before: float | None, lr_now: float | None
) -> Iterator[Cause]:
    if _differs(before, now, "data"):
        what = "the training data is not that of the checkpoint"
        yield Cause(code="data_identity", what=what, affects="later_steps")
    if lr_before and lr_now and abs(lr_now / lr_before - 1) > LR_TOLERANCE:
        what = (
            f"the learning rate goes from {units.significant(lr_before, 3)} to "
            f"{units.significant(lr_now, 3)} of its peak at this "
            f"step (x {units.significant(lr_now / lr_before, 3)})"
        )
        yield Cause(code="learning_rate", what=what, affects="later_steps")
    if _differs(before, now, "muon"):
        what = f"Muon was that of {before['muon']} and is now that of {now['muon']}"
        yield Cause(code="muon", what=what, affects="later_steps")


def _byte_table(recorded: str) -> str:
    if recorded == "decoded":
        return (
            "it was recorded by the byte lengths of before July 2026, which count 3 for bytes that "
            "are not UTF-8, and is now measured by the raw bytes of each token"
        )
    return (
        "it was recorded by the raw bytes of each token and is now measured by the byte lengths of "
        "before July 2026, which count 3 for bytes that are not UTF-8"
    )


def _streams(settings: dict[str, Any]) -> str:
    count = settings["streams"]
    return "one stream" if count == 1 else f"{count} streams"


def _differs(before: dict[str, Any], now: dict[str, Any], key: str) -> bool:
    """True if both have the field, with different values."""
    return before.get(key) is not None and now.get(key) is not None and before[key] != now[key]
