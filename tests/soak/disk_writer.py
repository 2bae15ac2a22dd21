"""Writes journal records, checkpoints and rows until the disk is half full: DISK.

Claims each when it is durable. A copy of the disk needs space to open the database in it.

--forgetful: an fsync that does nothing, as a control.
"""

from __future__ import annotations

import itertools
import os
import random
import shutil
import sys
from pathlib import Path

from server.database import tables
from server.database.db import Database
from server.settings import Settings
from tests.soak.checkpoints import make_one
from trainer.contract import journal


def main(disk: Path, *manners: str) -> None:
    settings = Settings(data_dir=disk / "data")
    db = Database.open(settings)
    writer = journal.Writer.create(disk / "outbox.jsonl", journal.JournalHeader("r", 1, "t"))
    directory = disk / "run" / "checkpoints"
    directory.mkdir(parents=True)
    os.sync()
    if "--forgetful" in manners:
        os.fsync = os.fdatasync = lambda fd: None
    print("ready", flush=True)
    for number in itertools.takewhile(lambda _: _has_room(disk), itertools.count()):
        writer.append({"kind": "step", "step": number}, durable=True)
        print(f"record {number}", flush=True)
        if number % 3 == 0:
            with db.write() as session:
                session.add(tables.Counter(name=f"row {number}", run="", label="", value=1.0))
            print(f"row {number}", flush=True)
        if number % 10 == 0:
            path = make_one(directory, number, random.Random(number))
            print(f"checkpoint {path.name}", flush=True)


def _has_room(disk: Path) -> bool:
    usage = shutil.disk_usage(disk)
    return 2 * usage.free > usage.total


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
