"""A run's life under the supervisor: start, pause, resume, cancel, queue, phases, jobs."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from server.database.tables import Job
from server.domain import checkpoint_lookup, extend, jobs, runs
from server.launch import process
from server.supervision.context import SupervisorContext
from server.supervision.supervisor import Supervisor
from tests.server.house import CPU, House
from trainer.contract.extend import ExtendRequest


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    built = House(tmp_path)
    yield built
    built.close()


def test_a_run_goes_from_queued_to_completed(house: House) -> None:
    run_id = house.create(prepared=False, steps=30)
    with house.daemon():
        run = house.becomes(run_id, "completed")
    assert house.states(run_id) == ["queued", "preparing", "starting", "running", "completed"]
    assert (run.step, run.reason) == (30, "finished")
    assert house.living() == []
    attempt = house.attempts(run_id)[0]
    assert (attempt.outcome, attempt.is_over, attempt.ended_at is not None) == (
        "completed", True, True,
    )  # fmt: skip
    house.check(run_id)


def test_pause_says_paused_when_the_process_is_gone(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    house.behave(monkeypatch, all={"linger": 0.4}, a1={"hold_at": 20})
    run_id = house.create()
    with house.daemon():
        house.reaches(run_id, 5)
        house.ask(runs.request_pause, run_id)
        seen_alive = False
        while house.run(run_id).state != "paused":
            seen_alive = seen_alive or (
                house.attempts(run_id)[0].outcome == "paused" and bool(house.living())
            )
            time.sleep(0.01)
        assert seen_alive  # it had said its last word, lived on, and the run was still pausing
        assert house.living() == []
        house.ask(runs.resume, run_id)
        house.becomes(run_id, "completed")
    assert len(house.attempts(run_id)) == 2
    house.check(run_id)


def test_resume_while_pausing_goes_on_after_the_checkpoint(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    house.behave(monkeypatch, all={"linger": 0.3}, a1={"hold_at": 20})
    run_id = house.create()
    with house.daemon():
        house.reaches(run_id, 5)
        house.ask(runs.request_pause, run_id)
        house.ask(runs.resume, run_id)
        house.becomes(run_id, "completed")
    assert "queued" in house.states(run_id)[1:]
    house.check(run_id)


def test_cancel_ends_without_a_checkpoint(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    house.behave(monkeypatch, a1={"hold_at": 20})
    run_id = house.create()
    with house.daemon():
        house.reaches(run_id, 5)
        house.ask(runs.request_cancel, run_id)
        house.becomes(run_id, "cancelled")
    assert house.attempts(run_id)[0].outcome == "cancelled"
    assert house.living() == []


def test_pause_before_there_is_a_process_is_immediate(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    house.behave(monkeypatch, job={"seconds": 30})
    run_id = house.create(prepared=False)
    with house.daemon():
        house.until(lambda: house.jobs() and house.jobs()[0].state == "running")
        house.ask(runs.request_pause, run_id)
        house.becomes(run_id, "paused")
    assert [job.state for job in house.jobs()] == ["cancelled"]
    assert house.attempts(run_id) == []


def test_escalation_command_then_sigterm_then_sigkill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    house = House(tmp_path, pause_deadline_seconds=0.4)
    house.behave(monkeypatch, all={"mute_inbox": True, "deaf": True})
    run_id = house.create(steps=100_000)
    with house.daemon():
        house.reaches(run_id, 15)
        house.ask(runs.request_pause, run_id)
        house.becomes(run_id, "paused")
    said = [e.message for e in house.events(run_id, "signal")]
    assert [m.split(":")[0] for m in said] == [
        "sent SIGTERM to the trainer", "sent SIGKILL to the trainer",
    ]  # fmt: skip
    assert house.living() == []
    assert "before the pause was complete" in house.run(run_id).reason_message
    house.close()


def test_a_preparation_that_cannot_start_fails_the_run_for_that_reason(house: House) -> None:
    """The text is not to blame for a jobs/ that is no directory, nor for a full disk."""
    run_id = house.create(prepared=False)
    jobs_dir = house.settings.paths.root / "jobs"
    if jobs_dir.is_dir():
        jobs_dir.rmdir()
    jobs_dir.write_text("")
    with house.daemon():
        run = house.becomes(run_id, "failed")
    assert run.reason == "io_error"
    assert str(jobs_dir) in run.reason_message


@pytest.mark.parametrize("first", [True, False], ids=["unused", "open"])
def test_a_pause_that_cannot_reach_the_inbox_is_a_signal_at_once(house: House, first: bool) -> None:
    """The deadline of a pause is ten minutes; without its inbox the trainer would train on."""
    run_id = house.create(steps=100_000)
    with house.daemon():
        house.reaches(run_id, 15)
        (row,) = house.attempts(run_id)
        directory = house.settings.paths.run(run_id).attempt(row.number)
        if not first:
            house.ask(jobs.save, run_id, pin=False)
            house.until(lambda: (directory / "inbox.jsonl").read_text().count("\n") > 1)
        (directory / "inbox.jsonl").unlink()
        house.ask(jobs.save, run_id, pin=False)
        house.until(lambda: house.events(run_id, "trouble"))
        house.ask(runs.request_pause, run_id)
        house.becomes(run_id, "paused")
    (said,) = [e.message for e in house.events(run_id, "signal")]
    assert said == "sent SIGTERM to the trainer: no pause can be written to its inbox"
    assert house.attempts(run_id)[0].outcome == "terminated"


@pytest.mark.parametrize(("verb", "state"), [("pause", "paused"), ("cancel", "cancelled")])
def test_a_stopped_trainer_is_continued_first_and_ends_in_order(
    house: House, verb: str, state: str
) -> None:
    """SIGSTOP lends the device to somebody; a pause then loses no step, however long it took."""
    run_id = house.create(steps=100_000)
    with house.daemon():
        pid = house.pid(run_id)
        house.reaches(run_id, 12)
        os.kill(pid, signal.SIGSTOP)
        house.until(lambda: process.is_stopped(pid))
        house.ask(runs.request_pause if verb == "pause" else runs.request_cancel, run_id)
        house.becomes(run_id, state)
    (said,) = [e.message for e in house.events(run_id, "signal")]
    assert said.startswith("sent SIGCONT to the trainer: it was stopped by a signal")
    attempt = house.attempts(run_id)[0]
    assert attempt.outcome == state
    if verb == "pause":
        assert (attempt.last_step or 0) + 1 == house.run(run_id).step
        with house.db.read() as session:
            (newest, *_) = checkpoint_lookup.usable(session, run_id)
        assert newest.step == house.run(run_id).step


def test_a_stopped_job_is_continued_too(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    house.behave(monkeypatch, job={"seconds": 60})
    run_id = house.create(steps=100_000)
    with house.daemon():
        house.reaches(run_id, 12)
        job_id = _add_job(house, run_id)
        pid = house.until(lambda: _job(house, job_id).pid)
        house.until(lambda: process.carriers(_job(house, job_id).token))
        os.kill(pid, signal.SIGSTOP)
        house.until(lambda: process.is_stopped(pid))
        with house.db.write() as session:
            jobs.cancel(session.get_one(Job, job_id))
        house.until(lambda: _job(house, job_id).state == "cancelled")
    assert process.carriers(_job(house, job_id).token) == []


def test_escalation_stops_at_sigterm_when_that_is_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    house = House(tmp_path, pause_deadline_seconds=0.4)
    house.behave(monkeypatch, all={"mute_inbox": True})
    run_id = house.create(steps=100_000)
    with house.daemon():
        house.reaches(run_id, 15)
        house.ask(runs.request_pause, run_id)
        house.becomes(run_id, "paused")
    assert [e.message.split()[1] for e in house.events(run_id, "signal")] == ["SIGTERM"]
    assert house.attempts(run_id)[0].outcome == "terminated"
    house.close()


def test_one_run_a_device_in_order_and_a_pause_frees_it(house: House) -> None:
    first, second = house.create("first", steps=100_000), house.create("second", steps=20)
    with house.daemon():
        house.reaches(first, 5)
        assert house.run(second).state == "queued"
        house.ask(runs.request_pause, first)
        house.becomes(second, "completed")
        assert house.run(first).state == "paused"


def test_data_is_prepared_while_another_run_trains(house: House) -> None:
    first = house.create("first", steps=100_000)
    with house.daemon():
        house.reaches(first, 5)
        second = house.create("second", prepared=False)
        house.until(lambda: house.settings.paths.run(second).data.exists())
        waiting = house.becomes(second, "queued")
        assert waiting.reason == "waiting_for_device"
        assert house.run(first).state == "running"


def test_unusable_data_fails_the_run_with_the_jobs_words(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    house.behave(monkeypatch, job={"fail": True})
    run_id = house.create(prepared=False)
    with house.daemon():
        run = house.becomes(run_id, "failed")
    assert run.reason == "data_unusable"
    assert "there is no text in it" in run.reason_message
    assert len(house.jobs()) == 1


def test_a_preparation_that_crashes_is_tried_once_more(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    house.behave(monkeypatch, job={"crash": True})
    run_id = house.create(prepared=False)
    with house.daemon():
        run = house.becomes(run_id, "failed")
    assert [job.reason for job in house.jobs()] == ["crashed", "crashed"]
    assert "the last words of a job" in run.reason_message


def test_an_extend_at_the_end_keeps_the_device(house: House) -> None:
    run_id, other = house.create("first", steps=90), house.create("other", steps=10)
    with house.daemon():
        house.reaches(run_id, 5)
        house.ask(extend.extend, run_id, ExtendRequest(to_step=100))
        run = house.becomes(run_id, "completed")
        assert house.run(other).started_at is None or run.ended_at is not None
        house.becomes(other, "completed")
    assert run.step == 100
    started = [(a.run_id, a.created_at) for r in (run_id, other) for a in house.attempts(r)]
    assert [r for r, _ in sorted(started, key=lambda pair: pair[1])] == [run_id, run_id, other]
    house.check(run_id)


def test_an_extend_now_ends_the_phase_at_the_next_step(house: House) -> None:
    run_id = house.create(steps=100_000)
    with house.daemon():
        house.reaches(run_id, 5)
        house.ask(extend.extend, run_id, ExtendRequest(to_step=100_500, at="now"))
        house.until(lambda: len(house.attempts(run_id)) == 2)
        house.until(lambda: house.attempts(run_id)[1].last_step is not None)
    first, second = house.attempts(run_id)
    assert first.outcome == "phase_ended"
    assert second.phase_index == 1
    house.check(run_id)


def test_a_missing_device_fails_clearly(house: House) -> None:
    run_id = house.create(device="cuda:3")
    with house.daemon():
        run = house.becomes(run_id, "failed")
    assert run.reason == "device_missing"
    assert "cuda:3" in run.reason_message
    assert "cpu" in run.reason_message


def test_an_interpreter_that_is_not_there_is_named(tmp_path: Path) -> None:
    house = House(tmp_path)
    house.settings.trainer_python = "/nowhere/python"
    run_id = house.create(recovery={"max_attempts_without_progress": 1})
    with house.daemon():
        run = house.becomes(run_id, "failed")
    assert "/nowhere/python" in run.reason_message
    house.close()


def test_full_disk_is_said_while_it_lasts(
    house: House, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("server.supervision.decide.DISK_SILENCE_SECONDS", 0.2)
    room = tmp_path / "room"
    house.behave(monkeypatch, all={"wait_at": 10, "until_there": str(room)})
    run_id = house.create(steps=100_000)
    with house.daemon():
        house.until(lambda: house.run(run_id).reason == "disk_full")
        assert house.run(run_id).state == "running"
        room.touch()
        house.until(lambda: house.run(run_id).reason == "requested")
    assert len(house.attempts(run_id)) == 1


# --- jobs ----------------------------------------------------------------------------------------


def _add_job(house: House, run_id: str, kind: str = "sample", where: Any = "cpu") -> str:
    with house.db.write() as session:
        run = session.get_one(runs.tables.Run, run_id)
        return jobs._add(session, kind, run, where, {}, time.time()).id


def _job(house: House, job_id: str) -> Job:
    return next(job for job in house.jobs() if job.id == job_id)


def test_cpu_jobs_run_one_at_a_time_beside_the_trainer(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    house.behave(monkeypatch, job={"seconds": 0.3})
    run_id = house.create(steps=100_000)
    with house.daemon():
        house.reaches(run_id, 12)
        ids = [_add_job(house, run_id) for _ in range(3)]
        most = 0
        while any(_job(house, i).state in ("queued", "running") for i in ids):
            most = max(most, sum(_job(house, i).state == "running" for i in ids))
            time.sleep(0.01)
        assert most == 1
        assert [_job(house, i).state for i in ids] == ["completed"] * 3
        assert house.run(run_id).state == "running"


def test_a_device_job_waits_for_the_device(
    house: House, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    house.behave(monkeypatch, a1={"wait_at": 15, "until_there": str(go)})
    run_id = house.create(steps=30)
    with house.daemon():
        house.reaches(run_id, 12)
        job_id = _add_job(house, run_id, where="device")
        time.sleep(0.2)
        assert _job(house, job_id).state == "queued"
        go.touch()
        house.becomes(run_id, "completed")
        house.until(lambda: _job(house, job_id).state == "completed")


def test_a_job_that_crashes_keeps_its_last_words(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    house.behave(monkeypatch, job={"crash": True})
    run_id = house.create(steps=100_000)
    with house.daemon():
        house.reaches(run_id, 12)
        job_id = _add_job(house, run_id)
        house.until(lambda: _job(house, job_id).state == "failed")
    assert "the last words of a job" in _job(house, job_id).message


def test_a_running_job_is_cancelled(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    house.behave(monkeypatch, job={"seconds": 60})
    run_id = house.create(steps=100_000)
    with house.daemon():
        house.reaches(run_id, 12)
        job_id = _add_job(house, run_id)
        house.until(lambda: _job(house, job_id).pid)
        with house.db.write() as session:
            jobs.cancel(session.get_one(Job, job_id))
        house.until(lambda: _job(house, job_id).state == "cancelled")


def test_an_inline_job_is_done_by_the_trainer(house: House) -> None:
    run_id = house.create(steps=100_000)
    with house.daemon():
        house.reaches(run_id, 12)
        with house.db.write() as session:
            run = session.get_one(runs.tables.Run, run_id)
            job_id = jobs.save(session, run, time.time(), pin=False).id
        house.until(lambda: _job(house, job_id).state == "completed")


# --- the daemon's own end ------------------------------------------------------------------------


def test_stopping_the_daemon_leaves_the_trainer(house: House) -> None:
    run_id = house.create(steps=100_000)
    with house.daemon():
        pid = house.pid(run_id)
    assert house.living() == [pid]


def test_stop_trainers_takes_them_along_and_the_next_daemon_goes_on(tmp_path: Path) -> None:
    house = House(tmp_path, stop_trainers=True)
    run_id = house.create(steps=100_000)
    with house.daemon():
        house.reaches(run_id, 15)
    assert house.living() == []
    assert house.attempts(run_id)[0].outcome == "terminated"
    assert house.run(run_id).state == "recovering"
    assert house.run(run_id).failures_without_progress == 0
    with house.daemon():
        house.until(lambda: house.last(run_id, lambda a: a.number == 2 and a.last_step is not None))
    house.check(run_id)
    house.close()


def test_a_supervisor_that_fails_says_so(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("a fault nobody thought of")

    monkeypatch.setattr("server.supervision.worklist.load", broken)
    supervisor = Supervisor(SupervisorContext(house.db, house.settings, CPU))
    supervisor.start(house.failures.append)
    deadline = time.monotonic() + 5
    while not house.failures and time.monotonic() < deadline:
        time.sleep(0.01)
    assert [str(error) for error in house.failures] == ["a fault nobody thought of"]
    assert not supervisor.is_alive
    supervisor.stop()


def test_idle_costs_next_to_nothing(house: House) -> None:
    with house.daemon() as supervisor:
        house.until(lambda: supervisor.ticks >= 1)
        before = supervisor.ticks
        time.sleep(0.5)
        assert supervisor.ticks - before <= 1
        run_id = house.create(steps=10)
        house.becomes(run_id, "completed")  # long before the next look of an idle supervisor


def test_signals_reach_only_the_trainer_they_are_meant_for(house: House) -> None:
    from server.launch import process
    from trainer.contract.rundir import identify

    own = identify(os.getpid())
    assert own is not None
    assert not process.send(own, "a token that it does not carry", signal.SIGTERM)
