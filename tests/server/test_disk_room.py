"""Starting on a full disk: runs and jobs wait for room and then start by themselves."""

from __future__ import annotations

import errno
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from server.database.tables import Job, Run
from server.domain import executions, jobs, runs
from server.machine import disk
from server.supervision import lifecycle, supervisor
from server.supervision.disk_room import RETRY_SECONDS, DiskRoom
from server.supervision.watch import Watch
from tests.server.house import House
from trainer.contract.commands import Command
from trainer.contract.journal import JournalFull


class Usage(NamedTuple):
    total: int
    used: int
    free: int


class Disk:
    """The free space that every look at a disk sees."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.free = 10**12
        monkeypatch.setattr(disk.shutil, "disk_usage", lambda path: Usage(10**13, 0, self.free))


@pytest.fixture
def space(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[House]:
    monkeypatch.setattr(supervisor, "IDLE_SECONDS", 0.05)
    house = House(tmp_path)
    yield house
    house.close()


# --- runs ----------------------------------------------------------------------------------------


def test_f71_a_run_created_on_a_full_disk_waits_and_starts_by_itself(
    house: House, space: Disk
) -> None:
    space.free = 12_345
    run_id = house.create(prepared=False)
    with house.daemon():
        house.until(lambda: house.run(run_id).reason == "disk_full")
        assert house.run(run_id).state == "queued"
        assert house.jobs() == []
        space.free = 10**12
        house.becomes(run_id, "completed")
    assert [job.state for job in house.jobs()] == ["completed"]
    assert "failed" not in house.states(run_id)


def test_f71_a_resume_on_a_full_disk_waits_without_an_attempt(
    house: House, space: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    house.behave(monkeypatch, all={"step_seconds": 0.01})
    run_id = house.create(steps=100_000)
    with house.daemon():
        house.reaches(run_id, 12)
        house.ask(runs.request_pause, run_id)
        house.becomes(run_id, "paused")
        space.free = 12_345
        house.ask(runs.resume, run_id)
        house.until(lambda: house.run(run_id).reason == "disk_full")
        assert house.run(run_id).state == "queued"
        assert len(house.attempts(run_id)) == 1
        space.free = 10**12
        house.becomes(run_id, "running")
    assert len(house.attempts(run_id)) == 2


def test_f71_a_run_whose_trainer_found_no_room_is_tried_again_and_never_given_up(
    house: House, space: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full again between the look at it and the start."""
    tries = []
    write = lifecycle._write_directory

    def full(directory: Path, order: object) -> None:
        tries.append(directory)
        if len(tries) <= 4:
            raise OSError(errno.ENOSPC, "No space left on device", str(directory))
        write(directory, order)  # type: ignore[arg-type]

    monkeypatch.setattr(lifecycle, "_write_directory", full)
    run_id = house.create(recovery={"max_attempts_without_progress": 2})
    with house.daemon():
        house.until(lambda: house.run(run_id).reason == "disk_full")
        house.until(lambda: _more(space) and house.run(run_id).state == "completed")
    assert len(tries) == 5
    assert "failed" not in house.states(run_id)


def _more(space: Disk) -> bool:
    space.free += disk.FULL_BYTES
    return True


# --- jobs ----------------------------------------------------------------------------------------


def test_f71_a_job_asked_for_on_a_full_disk_waits_and_says_so(house: House, space: Disk) -> None:
    run_id = house.create()
    with house.daemon():
        house.becomes(run_id, "completed")
        space.free = 12_345
        with house.db.write() as session:
            run = session.get_one(Run, run_id)
            job_id = jobs._add(session, "sample", run, "cpu", {}, time.time()).id
        house.until(lambda: _job(house, job_id).reason == "disk_full")
        waiting = _job(house, job_id)
        assert waiting.state == executions.ExecutionState.queued
        assert waiting.message == "The disk is full: it starts by itself once there is room."
        space.free = 10**12
        house.until(lambda: _job(house, job_id).state == "completed")
    assert _job(house, job_id).message != waiting.message


def _job(house: House, job_id: str) -> Job:
    return next(job for job in house.jobs() if job.id == job_id)


# --- commands ------------------------------------------------------------------------------------


def test_f71_a_command_that_finds_no_room_in_the_inbox_is_delivered_later(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    send, tries = Watch.send, []

    def full_at_first(watch: Watch, command: Command) -> None:
        tries.append(command)
        if len(tries) <= 3:
            raise JournalFull(f"{watch.directory}: No space left on device")
        send(watch, command)

    monkeypatch.setattr(Watch, "send", full_at_first)
    run_id = house.create(steps=100_000)
    with house.daemon():
        house.reaches(run_id, 12)
        house.ask(jobs.save, run_id, pin=False)
        house.until(lambda: [job.state for job in house.jobs()] == ["completed"])
    assert len(tries) == 4
    assert house.events(run_id, "trouble") == []


def test_f71_a_pause_is_not_held_up_by_a_command_that_finds_no_room(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(watch: Watch, command: Command) -> None:
        raise JournalFull(f"{watch.directory}: No space left on device")

    monkeypatch.setattr(Watch, "send", full)
    run_id = house.create(steps=100_000)
    with house.daemon():
        house.reaches(run_id, 12)
        house.ask(jobs.save, run_id, pin=False)
        house.ask(runs.request_pause, run_id)
        house.becomes(run_id, "paused")


# --- the room itself -----------------------------------------------------------------------------


def test_what_failed_for_want_of_room_waits_for_more_room_or_for_a_time(
    space: Disk, tmp_path: Path
) -> None:
    now = [0.0]
    room = DiskRoom(lambda: now[0])
    space.free = 100_000_000
    failed_at = time.time() + 1
    assert room.is_missing("a", tmp_path, failed_at=failed_at)
    space.free += disk.FULL_BYTES
    assert not room.is_missing("a", tmp_path, failed_at=failed_at)
    space.free = 100_000_000
    assert room.is_missing("a", tmp_path, failed_at=failed_at)
    now[0] = RETRY_SECONDS
    assert not room.is_missing("a", tmp_path, failed_at=failed_at)
    assert room.is_missing("a", tmp_path, failed_at=failed_at + 1)  # it failed once more
    assert not DiskRoom(lambda: 0.0).is_missing("a", tmp_path, failed_at=1.0)  # an earlier daemon


def test_the_fullest_of_the_disks_counts_and_a_path_may_not_exist_yet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = tmp_path / "runs"
    small.mkdir()
    real = shutil.disk_usage

    def usage(path: Path) -> object:
        found = real(path)
        return Usage(found.total, 0, 5 if path == small else 10**12)

    monkeypatch.setattr(disk.shutil, "disk_usage", usage)
    assert disk.least_free(tmp_path, small / "run_1" / "attempts") == 5
    assert disk.least_free(tmp_path) == 10**12
