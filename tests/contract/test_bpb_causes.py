"""Each cause is found when it holds, and only then."""

from __future__ import annotations

from typing import Any

import pytest

from trainer.contract.bpb_causes import causes, sentence

SETTINGS = {
    "eval_tokens": 8192, "batches": 16, "rows": 4, "sequence_len": 128, "packing": "best_fit",
    "streams": 1, "token_bytes": "raw", "validation": "v", "tokenizer": "t",
}  # fmt: skip
KNOWN: dict[str, Any] = {
    "identity": "i", "settings": SETTINGS, "compute_dtype": "bfloat16", "data": "d",
    "muon": "2026-07",
}  # fmt: skip


def test_nothing_changed() -> None:
    assert causes(KNOWN, dict(KNOWN), 0.5, 0.5) == []
    assert sentence([]) == ""


@pytest.mark.parametrize(
    ("settings", "code", "words"),
    [
        ({"validation": "w"}, "validation_data", "validation data"),
        ({"tokenizer": "u"}, "tokenizer", "tokenizer"),
        ({"token_bytes": "decoded"}, "token_bytes", "byte lengths of before July 2026"),
        ({"streams": 2, "batches": 8}, "streams", "by 2 streams and now by one stream"),
        ({"rows": 8, "batches": 8}, "span", "batches 8 -> 16, rows 8 -> 4"),
        ({"packing": "lossless"}, "span", "packing lossless -> best_fit"),
    ],
)
def test_what_is_measured(settings: dict[str, Any], code: str, words: str) -> None:
    before = {**KNOWN, "identity": "j", "settings": {**SETTINGS, **settings}}
    (found,) = causes(before, KNOWN, 0.5, 0.5)
    assert (found["code"], found["affects"]) == (code, "this_value")
    assert words in found["what"]


@pytest.mark.parametrize(
    ("change", "code", "affects", "words"),
    [
        ({"compute_dtype": "float32"}, "compute_dtype", "this_value", "in float32 and now in bf"),
        ({"program": "nanochat"}, "program", "this_value", "measured by nanochat"),
        ({"data": "e"}, "data_identity", "later_steps", "training data"),
        ({"muon": "2026-03"}, "muon", "later_steps", "Muon was that of 2026-03"),
        ({"identity": "j", "settings": None}, "unknown_settings", "this_value", "unknown"),
    ],
)
def test_how_it_was_made(change, code: str, affects: str, words: str) -> None:
    (found,) = causes({**KNOWN, **change}, KNOWN, 0.5, 0.5)
    assert (found["code"], found["affects"]) == (code, affects)
    assert words in found["what"]


def test_the_learning_rate_at_the_joint() -> None:
    (found,) = causes(KNOWN, KNOWN, 0.05, 0.56)
    assert found["code"] == "learning_rate"
    assert found["what"].endswith("from 0.05 to 0.56 of its peak at this step (x 11.2)")
    assert causes(KNOWN, KNOWN, 0.5, 0.4999) == []


def test_several_are_one_sentence() -> None:
    before = {**KNOWN, "muon": "2026-03", "compute_dtype": "float32"}
    found = causes(before, KNOWN, 0.05, 0.56)
    assert [cause["code"] for cause in found] == ["compute_dtype", "learning_rate", "muon"]
    assert sentence(found).count("; ") == 2


def test_what_was_not_recorded_is_no_cause() -> None:
    assert causes({"identity": "i", "value": 1.0}, KNOWN) == []
