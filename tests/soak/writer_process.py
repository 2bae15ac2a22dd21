"""Writes a journal and checkpoints and claims, line by line, what is durable: DIRECTORY.

Errors of the disk are caught and said, as the trainer does; what was claimed must then be there.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

from tests.soak.checkpoints import make_one
from trainer.contract import journal

RECORDS, CHECKPOINTS = 12, 3


def main(directory: Path) -> None:
    print("loaded", flush=True)
    try:
        writer = journal.Writer.create(directory / "outbox.jsonl", journal.Header("r", 1, "t"))
        for number in range(RECORDS):
            writer.append({"kind": "step", "step": number}, durable=True)
            print(f"record {number}", flush=True)
    except (OSError, journal.JournalError) as error:
        print(f"journal ended: {error}", flush=True)
    for number in range(1, CHECKPOINTS + 1):
        try:
            path = make_one(directory / "run" / "checkpoints", number, random.Random(number))
            print(f"checkpoint {path.name}", flush=True)
        except OSError as error:
            print(f"no checkpoint {number}: {error}", flush=True)
    print("end", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
