"""Writes a journal and checkpoints and claims, line by line, the durable data: DIRECTORY.

Disk errors are caught and printed, as in the trainer; claimed data must exist then.
"""

from __future__ import annotations

import contextlib
import os
import random
import sys
from pathlib import Path

from tests.soak.checkpoints import make_one
from trainer.contract import journal

RECORDS, CHECKPOINTS = 12, 3


def main(directory: Path) -> None:
    claim("loaded")
    try:
        writer = journal.Writer.create(
            directory / "outbox.jsonl", journal.JournalHeader("r", 1, "t")
        )
        for number in range(RECORDS):
            writer.append({"kind": "step", "step": number}, durable=True)
            claim(f"record {number}")
    except (OSError, journal.JournalError) as error:
        claim(f"journal ended: {error}")
    for number in range(1, CHECKPOINTS + 1):
        try:
            path = make_one(directory / "run" / "checkpoints", number, random.Random(number))
            claim(f"checkpoint {path.name}")
        except OSError as error:
            claim(f"no checkpoint {number}: {error}")
    claim("end")


def claim(words: str) -> None:
    """Print one line in one write. If the strike hits this write, nothing was claimed: print would
    buffer the line and write it later, as part of another."""
    with contextlib.suppress(OSError):
        os.write(1, f"{words}\n".encode())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
