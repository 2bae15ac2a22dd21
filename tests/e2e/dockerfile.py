"""The instructions of a Dockerfile, one by one."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Instruction:
    """name in capitals; text: its arguments on one line, flags such as --mount included."""

    name: str
    text: str
    line: int

    @property
    def words(self) -> list[str]:
        """The arguments without flags."""
        return [word for word in self.text.split() if not word.startswith("--")]


def instructions(path: Path) -> list[Instruction]:
    found, parts, began = [], [], 0
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        began = began if parts else number
        parts.append(line.strip().removesuffix("\\").strip())
        if line.rstrip().endswith("\\"):
            continue
        name, _, text = " ".join(parts).partition(" ")
        assert re.fullmatch("[A-Z]+", name), f"line {began}: {name}"
        found.append(Instruction(name, text.strip(), began))
        parts = []
    return found
