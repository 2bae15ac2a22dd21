"""Skipped documents of a corpus: counted by reason, with an example.

All readers share one account, so that nothing is skipped silently and eighty thousand files make
one sentence.
"""

from __future__ import annotations

import os
from pathlib import Path, PurePath

from trainer.contract.text import shown_path
from trainer.data.prepared import LeftOut

# reason -> (what is counted, why in words, whether a person should look)
_REASONS: dict[str, tuple[str, str, bool]] = {
    "binary": ("file", "not text in UTF-8 or UTF-16", True),
    "blank": ("document", "empty or only white space", False),
    "broken_link": ("file", "a link to something that is not there", True),
    "dot_file": ("file", "the name begins with a dot", False),
    "dot_folder": ("folder", "the name begins with a dot", False),
    "empty_file": ("file", "no bytes", False),
    "linked_folder": ("folder", "a link to a folder, which could lead in a circle", True),
    "no_rows": ("file", "no rows", True),
    "not_a_file": ("file", "neither a file nor a folder", True),
    "null_text": ("document", "the text is null", True),
    "other_kind": ("file", "another kind of file", False),
    "other_split": ("file", "of a split that this run does not use", True),
    "unreadable_name": ("file", "the name is not UTF-8", True),
}
# kept, but altered: counted in the same account
_CHANGED: dict[str, tuple[str, str, bool]] = {
    "replaced_bytes": ("file", "bytes that are not UTF-8 are read as U+FFFD", True),
    "half_characters": ("document", "half characters (\\ud800 to \\udfff) are read as ?", False),
    "null_as_empty": ("document", "the text is null and counts as an empty document", True),
}


class Account:
    """Counts of skipped input by reason; `first` is a file, with its line if known."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._first: dict[str, str] = {}
        self._once: set[tuple[str, str]] = set()

    def add(self, reason: str, where: str | PurePath, count: int = 1) -> None:
        """Count skipped input under a reason. where: an example, kept if it is the first."""
        assert reason in _REASONS or reason in _CHANGED, reason
        self._counts[reason] = self._counts.get(reason, 0) + count
        self._first.setdefault(reason, shown_path(where))

    def add_once(self, reason: str, where: str, count: int = 1) -> None:
        """`add` for input that may be read again: counts each `where` once."""
        if (reason, where) not in self._once:
            self._once.add((reason, where))
            self.add(reason, where, count)

    def entries(self) -> list[LeftOut]:
        return [
            LeftOut(reason=reason, unit=_words(reason)[0], count=count, first=self._first[reason])
            for reason, count in sorted(self._counts.items())
        ]


def sentences(entries: list[LeftOut]) -> list[str]:
    """One sentence for people for each reason."""
    return [_sentence(entry) for entry in entries]


def is_notable(entries: list[LeftOut]) -> bool:
    """True if a person should be notified; a README or .gitattributes is not notable."""
    return any(_words(entry.reason)[2] for entry in entries)


def _sentence(entry: LeftOut) -> str:
    unit, why, _ = _words(entry.reason)
    things = f"{entry.count:,} {unit}{'s' * (entry.count != 1)}"
    verb = "changed" if entry.reason in _CHANGED else "left out"
    return f"{things} {verb} ({why}); the first is {entry.first}"


def _words(reason: str) -> tuple[str, str, bool]:
    return _REASONS.get(reason) or _CHANGED.get(reason) or ("file", reason, True)


def is_utf8(path: Path | str) -> bool:
    try:
        os.fspath(path).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
