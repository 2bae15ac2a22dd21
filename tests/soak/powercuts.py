"""Power cuts: the image of a mounted ext4 is copied at random moments, mounted again and checked.

A process writes journals, checkpoints and a database on that disk and claims, line by line, the
data reported as durable. Data claimed before a copy began must be in the copy; every file with a
final name must be complete. Needs permission to mount.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sqlalchemy import select

from server.database import backups, sqlite, tables
from server.database.db import Database
from server.settings import Settings
from tests import kernel
from tests.soak import books
from tests.soak.counts import Budget, Counts
from trainer.checkpoint import store

IMAGE_BYTES = 48 << 20
CUTS_PER_DISK = 20
ROOT = Path(__file__).parents[2]


def run(budget: float, seed: int) -> Counts:
    counts, left = Counts("powercuts", seed), Budget(budget)
    if not kernel.can_loop():
        counts.say("this kernel does not let us mount images")
        return counts
    draw = random.Random(seed)
    while left.has_more():
        _one_disk(counts, draw, left, CUTS_PER_DISK)
    return counts


def control(seed: int) -> Counts:
    """The same with an fsync that does nothing: it must be detected."""
    counts = Counts("powercuts", seed)
    _one_disk(counts, random.Random(seed), Budget(60), 1, "--forgetful")
    return counts


def _one_disk(counts: Counts, draw: random.Random, left: Budget, cuts: int, *manners: str) -> None:
    memory = Path("/dev/shm")  # this checks what was written to the disk, not its speed
    with tempfile.TemporaryDirectory(
        prefix="soak-power-", dir=memory if memory.is_dir() else None
    ) as name:
        folder = Path(name)
        image = folder / "image"
        kernel.make_ext4(image, IMAGE_BYTES)
        with (
            kernel.loop_mounted(image, folder / "disk") as disk,
            _writing(disk, *manners) as (writer, claims),
        ):
            _wait_for(claims, 20)
            for _ in range(cuts):
                time.sleep(draw.uniform(0.05, 0.8))
                claimed = _cut(writer, claims, image, folder / "copy")
                _look(folder, claimed, counts)
                if left.is_over or writer.poll() is not None:
                    break


def _wait_for(claims: list[str], number: int) -> None:
    deadline = time.monotonic() + 60
    while len(claims) < number and time.monotonic() < deadline:
        time.sleep(0.01)


@contextmanager
def _writing(disk: Path, *manners: str) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """Start the writer; yields it and its claims so far."""
    command = [sys.executable, "-m", "tests.soak.disk_writer", str(disk), *manners]
    writer = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    claims: list[str] = []
    assert writer.stdout is not None
    first = writer.stdout.readline()
    assert first == "ready\n", first

    def listen(lines: Iterator[str] = iter(writer.stdout)) -> None:
        claims.extend(line.strip() for line in lines)

    listener = threading.Thread(target=listen)
    listener.start()
    try:
        yield writer, claims
    finally:
        with suppress(ProcessLookupError):
            writer.kill()
        writer.wait()
        listener.join()
        writer.stdout.close()


def _cut(writer: subprocess.Popen[str], claims: list[str], image: Path, copy: Path) -> list[str]:
    """Copy the disk while the writer is stopped; returns the claims made before."""
    os.kill(writer.pid, signal.SIGSTOP)
    try:
        claimed = list(claims)
        shutil.copyfile(image, copy)
    finally:
        os.kill(writer.pid, signal.SIGCONT)
    return claimed


# --- what is in the copy -------------------------------------------------------------------------


def _look(folder: Path, claimed: list[str], counts: Counts) -> None:
    with kernel.loop_mounted(folder / "copy", folder / "after") as after:
        there = {*_records(after), *_checkpoints(after, counts), *_rows(after, counts)}
    lost = [claim for claim in claimed if claim not in there]
    counts.add("power cuts")
    counts.add("claims held against them", len(claimed))
    counts.expect(not lost, f"{len(lost)} of {len(claimed)} claims lost, the first {lost[:1]}")


def _records(after: Path) -> Iterator[str]:
    yield from (f"record {r['step']}" for r in books.records(after / "outbox.jsonl"))


def _checkpoints(after: Path, counts: Counts) -> Iterator[str]:
    """Check that the newest verifies; those removed on purpose still count as made."""
    for path in sorted((after / "run" / "checkpoints").glob("step-*")):
        try:
            store.verify(path)
            yield f"checkpoint {path.name}"
        except store.Bad as error:
            counts.fail(f"{path.name} has its name and is not whole: {error}")


def _rows(after: Path, counts: Counts) -> Iterator[str]:
    if not (after / "data" / "traind.db").exists():
        return
    settings = Settings(data_dir=after / "data")
    found = backups.problems(sqlite.choose_library(), settings.paths.database, thorough=True)
    counts.expect(not found, f"integrity_check: {found[:2]}")
    db = Database.open(settings)
    try:
        with db.read() as session:
            yield from session.scalars(select(tables.Counter.name))
    finally:
        db.close()
