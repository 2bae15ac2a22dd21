"""Errors: ENOSPC and EIO at each pass of each place where a checkpoint or journal is written.

In this process at every pass; through real trainers at random passes; and, if strace is permitted,
as failing system calls of a process without failpoints.
"""

from __future__ import annotations

import errno
import itertools
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

from tests.soak import books, checkpoints, weights
from tests.soak.counts import Budget, Counts
from tests.trainer.lab import Lab
from trainer.checkpoint import safetensors_writer, store
from trainer.contract import failpoint, journal
from trainer.contract.orders import Lineage

NUMBERS = (errno.ENOSPC, errno.EIO)
CHECKPOINT_PLACES = (
    "checkpoint.write", "checkpoint.fsync", "durable.fsync", "durable.rename",
    "checkpoint.before_manifest", "checkpoint.before_rename", "checkpoint.before_dir_fsync",
)  # fmt: skip
JOURNAL_PLACES = ("journal.append", "journal.fsync")
CHANGING = ("write", "fsync", "fdatasync", "rename", "mkdir", "openat")
LOOKING = ("close", "read", "newfstatat")  # which never fail with ENOSPC
STRIKES_FOR_EACH_TRAINER = 24
ANY = Lineage(limits={1: 10**9})


class Strike(NamedTuple):
    """`how` as strace writes it, at the `when`-th of the writer's system calls of this name."""

    call: str
    when: int
    how: str


def run(budget: float, seed: int) -> Counts:
    counts, left = Counts("errors", seed), Budget(budget)
    draw = random.Random(seed)
    _sweep(counts)
    strikes = every_strike(draw) if _may_trace() else []
    counts.say(f"{len(strikes)} strikes with strace" if strikes else "strace may not trace here")
    to_come = iter(strikes)
    with weights.Workshop() as context, ThreadPoolExecutor(os.cpu_count()) as pool:
        while left.has_more():
            _one_trainer(context, counts, draw)
            some = itertools.islice(to_come, STRIKES_FOR_EACH_TRAINER)
            for found in pool.map(partial(_struck, seed), some):
                counts.merge(found)
    return counts


def control(seed: int) -> Counts:
    """The same with errors of fsync ignored: the process claims data that is not durable."""
    counts = Counts("errors", seed)
    with (
        patch.object(safetensors_writer, "failpoint", _Deaf()),
        patch.object(journal, "failpoint", _Deaf()),
    ):
        _sweep(counts)
    return counts


class _Deaf:
    """Failpoints of an fsync whose errors are ignored."""

    @staticmethod
    def hit(name: str) -> None:
        try:
            failpoint.hit(name)
        except OSError:
            if not name.endswith("fsync"):
                raise


# --- in this process -----------------------------------------------------------------------------


def _sweep(counts: Counts) -> None:
    """Every place, every pass, both errors: an error that is not reported is a false claim."""
    for number in NUMBERS:
        for place in CHECKPOINT_PLACES:
            passes = 0
            while _refuse_checkpoint(counts, place, passes, number):
                passes += 1
            counts.expect(passes, f"{place} was never passed")
        for place in JOURNAL_PLACES:
            for passes in range(10):
                _refuse_record(counts, place, passes, number)


@contextmanager
def _failing(terms: str) -> Iterator[None]:
    with patch.dict(os.environ, {"TRAIND_FAIL": terms}):
        failpoint._points.cache_clear()
        try:
            yield
        finally:
            failpoint._points.cache_clear()


def _refuse_checkpoint(counts: Counts, place: str, passes: int, number: int) -> bool:
    """One save with an error at its n-th pass of `place`. Returns False if it passes less often."""
    words = f"{place} pass {passes} {errno.errorcode[number]}"
    with tempfile.TemporaryDirectory(prefix="soak-errors-") as folder:
        directory, draw = Path(folder) / "run" / "checkpoints", random.Random(1)
        good = checkpoints.make_one(directory, 1, draw)
        with _failing(f"{place}={passes}*off->1*error({number})"):
            try:
                checkpoints.make_one(directory, 2, draw)
                struck = not failpoint._points()[place].terms
                struck |= failpoint._points()[place].terms[-1:] == [(0, "error", float(number))]
            except OSError as error:
                struck = None
                counts.expect(error.errno == number, f"{words}: {error!r}")
        if struck is not None:
            counts.expect(not struck, f"{words}: claimed all the same")
            return struck
        counts.add("errors in a save")
        left = [p.name for p in directory.iterdir()]
        counts.expect(left == [good.name], f"{words}: left {left}")
        again = checkpoints.make_one(directory, 2, draw)
        found = store.newest(directory, ANY)
        counts.expect(found and found.path == again, f"{words}: the next save is not the newest")
    return True


def _refuse_record(counts: Counts, place: str, passes: int, number: int) -> None:
    """A refused record must be absent; one that was not claimed must not be claimed later."""
    words = f"{place} pass {passes} {errno.errorcode[number]}"
    with tempfile.TemporaryDirectory(prefix="soak-errors-") as folder:
        path = Path(folder) / "outbox.jsonl"
        writer = journal.Writer.create(path, journal.JournalHeader("r", 1, "t"))
        claimed, refused = [], 0
        with _failing(f"{place}={passes}*off->1*error({number})"):
            for step in range(12):
                try:
                    writer.append({"kind": "step", "step": step}, durable=True)
                    claimed.append(step)
                except (OSError, journal.JournalError):
                    refused += 1
        writer.close()
        there = [r["step"] for r in books.records(path)]
        counts.add("errors in a journal")
        counts.expect(refused, f"{words}: nothing was refused")
        counts.expect(set(claimed) <= set(there), f"{words}: claimed {claimed}, there {there}")
        if place == "journal.append":
            counts.expect(there == claimed, f"{words}: refused, yet there: {there}")


# --- real trainers -------------------------------------------------------------------------------


def _one_trainer(context: weights.Workshop, counts: Counts, draw: random.Random) -> None:
    """A trainer with errors at random passes; it, or its next attempt, must end as its twin."""
    packing = draw.choice(weights.PACKINGS)
    lab = context.lab(packing)
    place = draw.choice((*CHECKPOINT_PLACES, *JOURNAL_PLACES, "checkpoint.remove"))
    number = draw.choice(NUMBERS)
    most = 60 if place.startswith("journal") else 8
    terms = f"{place}={draw.randrange(most)}*off->{draw.randrange(1, 3)}*error({number})"
    status = lab.run(terms)
    said = _reason(lab)
    counts.say(f"trainer with {terms}: status {status}, {said or 'it could not say why'}")
    counts.expect(said or status, f"{terms}: neither a reason nor a status")
    for path in lab.run_dir.checkpoints.glob("step-*"):
        store.verify(path)
    weights._finish(lab, counts)
    counts.add("trainers with errors")
    left = list(lab.run_dir.checkpoints.glob(".*"))
    counts.expect(not left, f"{terms}: left {left}")
    counts.expect(weights.picture(lab) == context.twin(packing), f"{terms}: not its twin")


def _reason(lab: Lab) -> str | None:
    """Reason of the attempt; None if the disk refused its record: the exit status decides."""
    try:
        return lab.exit()["reason"]
    except FileNotFoundError:
        return None


# --- strace --------------------------------------------------------------------------------------


def _may_trace() -> bool:
    if shutil.which("strace") is None:
        return False
    probe = ["strace", "-f", "-o", os.devnull, "-e", "trace=fsync", "true"]
    return subprocess.run(probe, capture_output=True, check=False).returncode == 0


def every_strike(draw: random.Random) -> list[Strike]:
    """Each system call of the writer on files, failing or killed there, in random order."""
    every = [
        Strike(call, when, how)
        for call, passes in _passes().items()
        for when in passes
        for how in ("error=EIO", "signal=KILL", *(["error=ENOSPC"] if call in CHANGING else []))
    ]
    draw.shuffle(every)
    return every


def _passes() -> dict[str, range]:
    """Passes of each system call after the writer has loaded, from an undisturbed writer."""
    before, after = Counter[str](), Counter[str]()
    counted = before
    with tempfile.TemporaryDirectory(prefix="soak-strace-") as folder:
        log = Path(folder) / "calls"
        _traced(Path(folder), "-o", str(log), "-e", f"trace={','.join((*CHANGING, *LOOKING))}")
        for line in log.read_text(errors="replace").splitlines():
            _, _, said = line.partition(" ")
            if said.lstrip().startswith('write(1, "loaded'):
                counted = after
            if "resumed>" not in said:
                counted[said.lstrip().partition("(")[0]] += 1
    return {
        call: range(before[call] + 1, before[call] + after[call] + 1)
        for call in (*CHANGING, *LOOKING)
    }


def _traced(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """The writer under strace."""
    command = ["strace", "-f", "-qq", *options, sys.executable]
    command += ["-m", "tests.soak.writer_process", str(folder)]
    root = Path(__file__).parents[2]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)


def _struck(seed: int, strike: Strike) -> Counts:
    """Data that the process claimed before and after a strike must exist, and files with their
    final name must be complete."""
    counts = Counts("errors", seed)
    with tempfile.TemporaryDirectory(prefix="soak-strace-") as folder:
        inject = f"inject={strike.call}:{strike.how}:when={strike.when}"
        done = _traced(Path(folder), "--seccomp-bpf", "-o", os.devnull, "-e", inject)
        failed = "error" in strike.how
        counts.add("system calls failed" if failed else "kills at system calls")
        words = f"{strike.call} number {strike.when}: {strike.how}"
        counts.say(f"{words}: status {done.returncode}")
        _hold_to_claims(counts, words, Path(folder), done.stdout.splitlines())
    return counts


def _hold_to_claims(counts: Counts, words: str, folder: Path, claims: list[str]) -> None:
    there = {f"record {r['step']}" for r in books.records(folder / "outbox.jsonl")}
    for path in (folder / "run" / "checkpoints").glob("step-*"):
        try:
            store.verify(path)
            there.add(f"checkpoint {path.name}")
        except store.Bad as error:
            counts.fail(f"{words}: {path.name}: {error}")
    lost = {c for c in claims if c.startswith(("record ", "checkpoint "))} - there
    counts.expect(not lost, f"{words}: claimed and not there: {sorted(lost)}")
