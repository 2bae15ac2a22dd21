"""Recognizes tokenizers of other programs by their files, and names them in the error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

ADVICE = (
    "traind reads its own tokenizer.json and nanochat's tokenizer.pkl; leave data.tokenizer out to "
    "train one on the corpus"
)
_FILES = {
    "tokenizer.model": "a SentencePiece model",
    "spiece.model": "a SentencePiece model",
    "sentencepiece.bpe.model": "a SentencePiece model",
    "merges.txt": "a GPT-2 style vocabulary (vocab.json, merges.txt)",
    "vocab.json": "a GPT-2 style vocabulary (vocab.json, merges.txt)",
    "vocab.txt": "a WordPiece vocabulary",
    "tokenizer_config.json": "the settings of a Hugging Face tokenizer",
}


def is_hugging_face(content: Any) -> bool:
    """True if the content of a tokenizer.json is from the `tokenizers` library."""
    return isinstance(content, dict) and "format" not in content and "model" in content


def sentence(content: dict[str, Any]) -> str:
    """Clause that describes a Hugging Face tokenizer.json."""
    model = content["model"] if isinstance(content["model"], dict) else {}
    vocabulary = model.get("vocab")
    size = f", {len(vocabulary):,} tokens" if isinstance(vocabulary, dict | list) else ""
    kind = str(model.get("type") or "unknown kind")[:32]
    return f"it is a Hugging Face tokenizer ({kind}{size}); {ADVICE}"


def hint(directory: Path) -> str:
    """The end of an error about a folder without a tokenizer; "" if nothing is recognized."""
    for name, kind in _FILES.items():
        if (directory / name).exists():
            return f". {name} there is {kind}; {ADVICE}"
    found = next(iter(sorted(directory.glob("*.tiktoken"))), None)
    return f". {found.name} there is a tiktoken vocabulary; {ADVICE}" if found else ""
