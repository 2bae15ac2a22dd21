"""Places: a data directory that is moved, copied beside its original, backed up and restored."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from server.database.db import Database
from server.database.tables import Attempt
from server.domain import runs
from server.launch import process
from server.maintenance import backup
from server.maintenance.restore import restore
from tests.server.house import House
from tests.soak.counts import Budget, Counts
from tests.soak.processes import Settlement
from trainer.contract import rundir

STEPS = 250
MANNERS = {"step_seconds": 0.004, "save_every": 20}
PATIENT = {"max_attempts_without_progress": 1000}


def moves(budget: float, seed: int) -> Counts:
    """Move the directory between two daemons, with and without a live trainer."""
    counts, left, draw = Counts("moves", seed), Budget(budget), random.Random(seed)
    while left.has_more():
        town = Settlement(**MANNERS)
        try:
            _moved(town, counts, draw)
        finally:
            town.close()
    return counts


def control_moves(seed: int) -> Counts:
    """Orders with absolute directory paths: a move must detect them."""
    from trainer.contract import orders

    real = orders._relative
    orders._relative = lambda path, directory, data_dir: path
    counts = Counts("moves", seed)
    with tempfile.TemporaryDirectory(prefix="soak-daemon-") as folder:
        house = House(Path(folder))
        try:
            run_id = house.create("absolute", steps=10)
            with house.daemon():
                house.becomes(run_id, "completed")
            _expect_no_absolute_path(house, counts)
        finally:
            orders._relative = real
            house.close()
    return counts


def _expect_no_absolute_path(house: House, counts: Counts) -> None:
    absolute = [p for p in _texts(house.settings.data_dir) if b"/soak-daemon-" in _bytes(p)]
    counts.expect(not absolute, f"stored by absolute path: {absolute[:3]}")


def copies(budget: float, seed: int) -> Counts:
    """Copy the directory while a trainer works in it, and serve the copy beside it."""
    counts, left, draw = Counts("copies", seed), Budget(budget), random.Random(seed)
    while left.has_more():
        _copied(counts, draw, guarded=True)
    return counts


def restores(budget: float, seed: int) -> Counts:
    """Restore an older database at a random moment: no step and no run is lost."""
    counts, left, draw = Counts("restores", seed), Budget(budget), random.Random(seed)
    while left.has_more():
        _restored(counts, draw, MANNERS, catches_up=True)
    return counts


def strangers(budget: float, seed: int) -> Counts:
    """Pid reuse: the recorded process is now another program."""
    counts, left, draw = Counts("strangers", seed), Budget(budget), random.Random(seed)
    while left.has_more():
        _strange(counts, draw)
    return counts


def control_strangers(seed: int) -> Counts:
    """A daemon that checks only pid and start time, and waits for the other program for ever."""
    real = process.works_in
    process.works_in = lambda pid, directory: True
    counts = Counts("strangers", seed)
    try:
        _strange(counts, random.Random(seed), seconds=6.0)
    finally:
        process.works_in = real
    return counts


def _strange(counts: Counts, draw: random.Random, seconds: float = 60.0) -> None:
    """After a daemon was down, the row names another program that took the pid within a tick."""
    with tempfile.TemporaryDirectory(prefix="soak-strange-") as folder:
        house = House(Path(folder))
        os.environ["FAKE"] = json.dumps({"1": {**MANNERS, "hold_at": 40}, "*": MANNERS})
        stranger = subprocess.Popen(["sleep", "120"])
        try:
            run_id = house.create("strange", steps=80, recovery=PATIENT)
            with house.daemon():
                house.until(lambda: _has_steps(house, run_id))
                time.sleep(draw.uniform(0.0, 0.2))
            (attempt,) = house.attempts(run_id)
            process.kill_carriers(attempt.token)
            _write_identity(house, attempt.id, stranger.pid)
            with house.daemon():
                end = time.monotonic() + seconds
                while house.run(run_id).state != "completed" and time.monotonic() < end:
                    time.sleep(0.02)
            counts.add("strangers")
            state = house.run(run_id).state
            counts.expect(state == "completed", f"it waited for a stranger: {state}")
            counts.expect(stranger.poll() is None, "a stranger was signalled")
        finally:
            os.environ.pop("FAKE", None)
            stranger.kill()
            stranger.wait()
            house.close()


def _write_identity(house: House, attempt_id: int, pid: int) -> None:
    found = rundir.identify(pid)
    assert found is not None
    with house.db.write() as session:
        row = session.get_one(Attempt, attempt_id)
        row.handle = asdict(found)


# --- moves ---------------------------------------------------------------------------------------


def _moved(town: Settlement, counts: Counts, draw: random.Random) -> None:
    run_id = town.house.create("moved", steps=STEPS, recovery=PATIENT)
    for _ in range(2):
        town.start()
        time.sleep(draw.uniform(0.2, 0.9))
        if town.house.run(run_id).state == "completed":
            break
        _end_trainer(town, run_id)
        town.kill()
        _rename(town, draw)
        counts.add("moves")
    town.start()
    counts.expect(town.completes(run_id), f"lost after a move: {town.house.picture()[-600:]}")
    town.kill()
    town.audit(counts)
    _expect_no_absolute_path(town.house, counts)
    counts.add("runs")


def _end_trainer(town: Settlement, run_id: str) -> None:
    found = town.trainer(run_id)
    if found is not None:
        with suppress(ProcessLookupError):
            os.kill(found[0], signal.SIGKILL)


def _replace_trainer(town: Settlement, run_id: str) -> None:
    """End the trainer and wait for the next attempt's, or for the end of the run."""
    known = len(town.house.attempts(run_id))
    _end_trainer(town, run_id)
    town.sees(lambda: len(town.house.attempts(run_id)) > known or _is_completed(town, run_id))
    town.sees(lambda: town.trainer(run_id) or _is_completed(town, run_id))


def _is_completed(town: Settlement, run_id: str) -> bool:
    return town.house.run(run_id).state == "completed"


def _rename(town: Settlement, draw: random.Random) -> None:
    """Rename the directory; `house` then uses the new path."""
    settings = town.house.settings
    target = settings.data_dir.with_name(f"data-{draw.randrange(10**9)}")
    town.house.db.close()
    os.rename(settings.data_dir, target)
    town.house.settings = settings.model_copy(update={"data_dir": target})
    town.house.db = Database.open(town.house.settings)


def _texts(root: Path) -> list[Path]:
    return [*root.glob("runs/*/attempts/*/order.json"), *root.glob("runs/*/data.json")]


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


# --- copies --------------------------------------------------------------------------------------


def control_copies(seed: int) -> Counts:
    """A copy that trusts only its rows: it must be detected that it ends the original's trainer."""
    real = process.works_in
    process.works_in = lambda pid, directory: True
    counts = Counts("copies", seed)
    try:
        _copied(counts, random.Random(seed), guarded=False)
    finally:
        process.works_in = real
    return counts


def _copied(counts: Counts, draw: random.Random, *, guarded: bool) -> None:
    town = Settlement(**{**MANNERS, "hold_at": 60})
    copy: House | None = None
    try:
        run_id = town.house.create("original", steps=STEPS, recovery=PATIENT)
        town.start()
        if not town.sees(lambda: _has_steps(town.house, run_id)):
            counts.fail("the original never stepped")
            return
        time.sleep(draw.uniform(0.0, 0.2))
        trainer = town.trainer(run_id)
        copy = _copy_of(town)
        if guarded:
            from server.supervision.startup import arrive

            arrive(copy.db, copy.settings.paths)
        elif trainer is not None:  # such a copy takes the process for its own, and ends it
            copy.ask(runs.request_cancel, run_id)
        with copy.daemon():
            settled = ("paused",) if guarded else ("cancelled",)
            town.sees(lambda: copy is not None and copy.run(run_id).state in settled, 20)
        counts.add("copies")
        counts.expect(trainer is not None, "the original has no trainer")
        alive = town.trainer(run_id)
        same = alive is not None and trainer is not None and alive[0] == trainer[0]
        counts.expect(same, "the copy ended the original's trainer")
        counts.expect(copy.run(run_id).reason == "copied", f"the copy: {copy.run(run_id).reason}")
    finally:
        if copy is not None:
            copy.close()
        town.close()


def _has_steps(house: House, run_id: str) -> bool:
    return house.last(run_id, lambda a: a.pid and a.last_step is not None) is not None


def _copy_of(town: Settlement) -> House:
    source = town.house.settings
    backup.backup(source)
    beside = source.data_dir.parent / "beside"
    beside.mkdir()
    copy = House(beside)
    copy.db.close()
    shutil.rmtree(copy.settings.data_dir)
    shutil.copytree(source.data_dir, copy.settings.data_dir)
    copy.db = Database.open(copy.settings)
    return copy


# --- restores ------------------------------------------------------------------------------------


def control_restores(seed: int) -> Counts:
    """An older database restored without reading the disk again: lost steps must be detected."""
    counts = Counts("restores", seed)
    slowly = {**MANNERS, "step_seconds": 0.02}  # still running when attempts are lost
    _restored(counts, random.Random(seed), slowly, catches_up=False)
    return counts


def _restored(
    counts: Counts, draw: random.Random, manners: dict[str, Any], *, catches_up: bool
) -> None:
    town = Settlement(**manners)
    try:
        run_id = town.house.create("restored", steps=STEPS, recovery=PATIENT)
        town.start()
        town.sees(lambda: _has_steps(town.house, run_id))
        time.sleep(draw.uniform(0.0, 0.3))
        made = backup.backup(town.house.settings)
        for _ in range(draw.randrange(1, 4)):  # attempts that are not in the backup
            time.sleep(draw.uniform(0.1, 0.4))
            _replace_trainer(town, run_id)
        _end_trainer(town, run_id)
        town.kill()
        _put_back(town, Path(made.path), catches_up)
        counts.add("restores")
        town.start()
        counts.expect(town.completes(run_id), f"lost: {town.house.picture()[-600:]}")
        town.kill()
        numbers = [a.number for a in town.house.attempts(run_id)]
        folder = town.house.settings.paths.run(run_id).root / "attempts"
        on_disk = sorted(int(path.name) for path in folder.iterdir())
        counts.expect(numbers == on_disk, f"attempts {numbers} in rows, {on_disk} on the disk")
        town.audit(counts)
    finally:
        town.close()


def _put_back(town: Settlement, made: Path, catches_up: bool) -> None:
    settings = town.house.settings
    town.house.db.close()
    if catches_up:
        restore(settings, made)
    else:
        for suffix in ("-wal", "-shm"):
            Path(f"{settings.paths.database}{suffix}").unlink(missing_ok=True)
        shutil.copyfile(made, settings.paths.database)
        for path in sorted((settings.paths.root / "runs").glob("*/attempts/*/order.json"))[1:]:
            path.unlink()  # so that nothing can be read again
    town.house.db = Database.open(settings)
