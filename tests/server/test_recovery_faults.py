"""What becomes of a run when trainers and daemons die, with real processes and real signals.

Each test carries the number of its fault in the list of promises.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from server.database.tables import Attempt, Point, Run
from server.domain import remedies, runs
from server.launch import process
from server.schemas.runs import ResumeRequest
from tests.server.house import ROOT, House
from trainer.contract import journal
from trainer.contract.rundir import OUTBOX, boot_id

FOREVER = 100_000


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    built = House(tmp_path)
    yield built
    built.close()


@contextmanager
def daemon_process(house: House, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """A daemon in a process of its own; killed at the end if it still lives."""
    daemon = subprocess.Popen(
        [
            sys.executable, "-m", "tests.server.daemon_process",
            str(house.settings.data_dir), house.settings.trainer_python,
        ],
        cwd=ROOT, stdout=subprocess.PIPE, text=True, env={**os.environ, **environment},
    )  # fmt: skip
    try:
        assert daemon.stdout is not None
        if "TRAIND_FAIL" not in environment:
            assert daemon.stdout.readline() == "ready\n"
        yield daemon
    finally:
        daemon.kill()
        daemon.wait()
        if daemon.stdout is not None:
            daemon.stdout.close()


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def reports_are_whole(house: House, run_id: str) -> None:
    """Every valid step record of every journal is a row, once, and there is no other."""
    for attempt in house.attempts(run_id):
        directory = house.settings.paths.run(run_id).attempt(attempt.number)
        reader = journal.JournalReader(directory / OUTBOX)
        batch = reader.read()
        said = []
        while batch.records:
            said += [r["step"] for r in batch.records if r["kind"] == "step"]
            batch = reader.read(batch.offset, batch.next_seq)
        with house.db.read() as session:
            rows = session.query(Point.step).where(Point.attempt_id == attempt.id)
            assert sorted(said) == sorted(step for (step,) in rows)


# --- trainers die --------------------------------------------------------------------------------


@pytest.mark.no_cover  # it measures time, which tracing adds to
def test_f01_a_killed_trainer_is_noticed_and_followed_by_a_clean_curve(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    house.behave(monkeypatch, a1={"hold_at": 45})  # between two checkpoints
    run_id = house.create(steps=80)
    with house.daemon():
        house.reaches(run_id, 45)
        pid = house.pid(run_id)
        killed = time.monotonic()
        kill(pid)
        house.until(lambda: house.events(run_id, "attempt"))
        assert time.monotonic() - killed < 2
        house.becomes(run_id, "completed")
    first, second = house.attempts(run_id)
    resumed = house.events(run_id, "resumed")[-1]
    assert (first.outcome, first.reason) == ("crashed", "crashed")
    assert "SIGKILL" in first.message
    assert second.start_step == 40
    assert "crashed at step 45, resumed from 40 " in resumed.message
    assert "5 steps repeated" in resumed.message
    assert first.lineage_limit == second.start_step
    house.check(run_id)
    reports_are_whole(house, run_id)


def test_f01_random_kills_lose_nothing(house: House) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    run_id = house.create(steps=150, recovery={"max_attempts_without_progress": 50})
    kills = 0
    with house.daemon(backoff=(0.01,)):
        while kills < 5 and house.run(run_id).state != "completed":
            time.sleep(chance.uniform(0.1, 0.6))
            last = house.last(run_id, lambda a: a.pid and not a.is_over)
            if last is not None and process.carries(last.pid or 0, last.token):
                kill(last.pid or 0)
                kills += 1
        run = house.becomes(run_id, "completed", 40)
    assert run.step == 150
    assert kills >= 1
    house.check(run_id)
    reports_are_whole(house, run_id)


def test_f02_a_checkpoint_that_was_never_reported_is_still_found(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    house.behave(monkeypatch, a1={"crash_at": 15, "save_every": 1000, "unsaid_at": 12})
    run_id = house.create(steps=30)
    with house.daemon():
        house.becomes(run_id, "completed")
    assert house.attempts(run_id)[1].start_step == 12
    house.check(run_id)


def test_f03_a_crash_loop_stops_and_names_cause_and_last_words(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    house.behave(monkeypatch, all={"raise_at": 5})
    run_id = house.create()
    with house.daemon():
        run = house.becomes(run_id, "failed")
    attempts = house.attempts(run_id)
    assert len(attempts) == 3
    assert run.reason == "no_progress"
    assert "3 consecutive attempts" in run.reason_message
    assert "exit code 1" in run.reason_message
    assert run.reason_message.endswith("the last line of its log: Traceback: it went wrong")
    assert "Traceback: it went wrong" in (attempts[-1].log_tail or "")


def test_f03_progress_resets_the_counter(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    crashes = {f"a{n}": {"crash_at": 12 * n} for n in range(1, 6)}
    house.behave(monkeypatch, **crashes)
    run_id = house.create(steps=80)
    with house.daemon():
        house.becomes(run_id, "completed", 30)
    assert len(house.attempts(run_id)) == 6
    house.check(run_id)


def test_f03_control_bytes_of_the_log_are_escaped(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    house.behave(monkeypatch, a1={"crash_at": 5})
    run_id = house.create(steps=20)
    with house.daemon():
        house.becomes(run_id, "completed")
    tail = house.attempts(run_id)[0].log_tail or ""
    assert r"the last words of a crash \x1b[31m" in tail
    assert "\x1b" not in tail


def test_f04_a_hang_is_stalled_with_its_stacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    house = House(tmp_path, stall_seconds=0.6)
    house.behave(monkeypatch, a1={"hang_at": 15, "deaf": True, "slow_start": 0})
    monkeypatch.setattr("server.supervision.decide.TERM_SECONDS", 0.3)
    monkeypatch.setattr("server.supervision.decide.DUMP_SECONDS", 0.3)
    run_id = house.create(steps=30)
    with house.daemon():
        house.becomes(run_id, "completed", 30)
    first = house.attempts(run_id)[0]
    assert first.reason == "stalled"
    assert "misbehave" in (first.log_tail or "")  # the function it hung in
    sent = [e.message.split()[1] for e in house.events(run_id, "signal")]
    assert sent == ["SIGURG", "SIGTERM", "SIGKILL"]
    house.check(run_id)
    house.close()


def test_f04_a_stopped_trainer_is_stalled_not_crashed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    house = House(tmp_path, stall_seconds=0.6)
    house.behave(monkeypatch, a1={"stop_at": 15})
    monkeypatch.setattr("server.supervision.decide.DUMP_SECONDS", 0.3)
    run_id = house.create(steps=120)
    with house.daemon():
        house.becomes(run_id, "completed", 30)
    first = house.attempts(run_id)[0]
    assert (first.outcome, first.reason) == ("terminated", "stalled")
    why = [e.message for e in house.events(run_id, "signal")]
    assert "SIGURG and SIGCONT" in why[0]
    assert "stopped by a signal" in why[0]
    house.check(run_id)
    house.close()


def test_f04_a_trainer_that_only_rested_is_spared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    house = House(tmp_path, stall_seconds=0.6)
    house.behave(monkeypatch, a1={"rest_at": 15, "rest_seconds": 1.0})
    monkeypatch.setattr("server.supervision.decide.DUMP_SECONDS", 5.0)
    run_id = house.create(steps=60)
    with house.daemon():
        house.becomes(run_id, "completed", 30)
    assert len(house.attempts(run_id)) == 1
    assert [e.message.split()[0] for e in house.events(run_id, "signal")] == ["sent", "it"]
    house.close()


# --- daemons die ---------------------------------------------------------------------------------


def test_f05_training_does_not_notice_that_daemons_are_killed(house: House) -> None:
    run_id = house.create(steps=FOREVER)
    for _ in range(3):
        with daemon_process(house):
            if house.attempts(run_id):
                taken = house.run(run_id).step
                house.until(lambda taken=taken: house.run(run_id).step > taken)
            house.reaches(run_id, house.run(run_id).step + 5)
    with house.daemon():
        house.ask(runs.request_pause, run_id)
        house.becomes(run_id, "paused", 30)
    assert len(house.attempts(run_id)) == 1
    house.check(run_id)
    reports_are_whole(house, run_id)


@pytest.mark.parametrize("place", ["ingest.rows", "ingest.cursor", "db.commit", "ingest.committed"])
def test_f06_a_daemon_killed_inside_ingestion_reads_exactly_once(house: House, place: str) -> None:
    run_id = house.create(steps=200)  # long enough for nine passes on a busy machine
    with daemon_process(house, TRAIND_FAIL=f"{place}=8*off->1*kill") as daemon:
        daemon.wait(timeout=90)
        assert daemon.returncode == -signal.SIGKILL
    with house.daemon():
        house.becomes(run_id, "completed", 30)
    house.check(run_id)
    reports_are_whole(house, run_id)


@pytest.mark.parametrize("place", ["supervisor.spawn", "supervisor.record"])
def test_f07_a_daemon_killed_around_the_spawn_leaves_one_trainer(house: House, place: str) -> None:
    run_id = house.create(steps=60)
    with daemon_process(house, TRAIND_FAIL=f"{place}=1*kill") as daemon:
        daemon.wait(timeout=90)
        assert daemon.returncode == -signal.SIGKILL
    assert house.attempts(run_id)[0].pid is None
    if place == "supervisor.record":
        house.until(lambda: house.living())
    most = 0
    with house.daemon():
        while house.run(run_id).state != "completed":
            most = max(most, len(house.living()))
            time.sleep(0.02)
    assert most == 1
    assert len(house.attempts(run_id)) == (1 if place == "supervisor.record" else 2)
    house.check(run_id)


def test_f08_both_killed_resumes_from_the_last_checkpoint(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    house.behave(monkeypatch, a1={"hold_at": 45})
    run_id = house.create(steps=60)
    with daemon_process(house):
        pid = house.pid(run_id)
        house.reaches(run_id, 25)
    kill(pid)
    with house.daemon():
        house.becomes(run_id, "completed", 30)
    assert house.attempts(run_id)[1].start_step in (20, 30, 40)
    house.check(run_id)


@pytest.mark.parametrize(
    ("manners", "outcome", "state"),
    [
        ({}, "completed", "completed"),
        ({"no_ended": True}, "completed", "completed"),
        ({"torn_end": True}, "crashed", "completed"),
        ({"fail_at": 20, "reason": "out_of_memory"}, "failed", "failed"),
        ({"crash_at": 20}, "crashed", "completed"),
    ],
)
def test_f09_an_end_while_no_daemon_lives_is_found(
    house: House,
    monkeypatch: pytest.MonkeyPatch,
    manners: dict[str, Any],
    outcome: str,
    state: str,
) -> None:
    house.behave(monkeypatch, a1={"step_seconds": 0.1, **manners})
    run_id = house.create(steps=30)
    with house.daemon():
        pid = house.pid(run_id)
    os.waitpid(pid, 0)
    assert house.run(run_id).state in ("starting", "running")
    with house.daemon():
        house.becomes(run_id, state)
    assert house.attempts(run_id)[0].outcome == outcome
    house.check(run_id)
    reports_are_whole(house, run_id)


@pytest.mark.parametrize(("policy", "state"), [("resume", "completed"), ("wait", "paused")])
def test_f10_a_reboot_is_told_by_the_boot_id(
    house: House, monkeypatch: pytest.MonkeyPatch, policy: str, state: str
) -> None:
    house.behave(monkeypatch, a1={"hold_at": 20})
    run_id = house.create(steps=40, recovery={"on_reboot": policy})
    with house.daemon():
        pid = house.pid(run_id)
        house.reaches(run_id, 15)
    kill(pid)
    os.waitpid(pid, 0)
    stranger = subprocess.Popen(["sleep", "60"])  # somebody has the old pid after the reboot
    with house.db.write() as session:
        attempt = session.query(Attempt).one()
        attempt.handle = {**attempt.handle, "boot_id": "another-boot", "pid": stranger.pid}
    with house.daemon():
        run = house.becomes(run_id, state)
    first = house.attempts(run_id)[0]
    assert (first.outcome, first.reason) == ("crashed", "host_restarted")
    assert run.failures_without_progress == 0
    assert stranger.poll() is None
    stranger.kill()
    stranger.wait()


def test_f11_no_signal_reaches_a_stranger_with_the_same_pid(house: House) -> None:
    run_id = house.create(steps=FOREVER)
    with house.daemon():
        pid = house.pid(run_id)
    kill(pid)
    os.waitpid(pid, 0)
    stranger = subprocess.Popen(["sleep", "60"])
    found = process.rundir.identify(stranger.pid)
    assert found is not None
    with house.db.write() as session:  # the same pid and start time: only the token differs
        attempt = session.query(Attempt).one()
        attempt.handle = asdict(found)
    assert not process.send(found, house.attempts(run_id)[0].token, signal.SIGKILL)
    assert stranger.poll() is None
    stranger.kill()
    stranger.wait()


def test_f12_a_zombie_is_dead_and_helpers_are_gone_before_the_next_attempt(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    house.behave(monkeypatch, a1={"helper": True})
    run_id = house.create(steps=FOREVER)
    with house.daemon():
        pid = house.pid(run_id)
    token = house.attempts(run_id)[0].token
    assert len(process.carriers(token)) == 2
    kill(pid)  # a zombie: its parent, this process, does not reap it
    house.until(lambda: len(process.carriers(token)) == 1)
    with house.daemon():
        house.until(lambda: len(house.attempts(run_id)) == 2)
        assert process.carriers(token) == []
    os.waitpid(pid, 0)


def test_f13_host_out_of_memory_is_retried_once(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    house.behave(monkeypatch, all={"crash_at": 5})
    monkeypatch.setattr("server.supervision.post_mortem._oom", lambda watch, lines: "limit 8.59 GB")
    run_id = house.create()
    with house.daemon():
        run = house.becomes(run_id, "failed")
    assert run.reason == "host_out_of_memory"
    assert "limit 8.59 GB" in run.reason_message
    assert len(house.attempts(run_id)) == 2


def test_f16_a_stale_attempt_changes_nothing(house: House) -> None:
    run_id = house.create(steps=FOREVER)
    with house.daemon():
        kill(house.pid(run_id))
        house.until(lambda: house.last(run_id, lambda a: a.number == 2 and a.last_step is not None))
        first = house.attempts(run_id)[0]
        stale = house.settings.paths.run(run_id).attempt(1)
        writer = journal.Writer.reopen(stale / OUTBOX)
        writer.append({"kind": "resumed", "step": 0, "checkpoint": None, "tokens_seen": 0})
        writer.close()
        again = subprocess.run(
            [house.settings.trainer_python, "-P", "-m", "trainer", str(stale)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert "FileExistsError" in again.stderr
        step = house.run(run_id).step
        house.until(lambda: house.run(run_id).step > step)
        assert house.attempts(run_id)[0].execution.outbox_seq == first.execution.outbox_seq
        assert len(house.attempts(run_id)) == 2
    house.check(run_id)


def test_f33_non_finite_loss_stops_by_default(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    house.behave(monkeypatch, all={"fail_at": 15, "reason": "non_finite_loss"})
    run_id = house.create()
    with house.daemon():
        run = house.becomes(run_id, "failed")
    assert run.reason == "non_finite_loss"
    assert len(house.attempts(run_id)) == 1


def test_f33_rewind_leaves_the_step_out(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    house.behave(monkeypatch, all={"fail_at": 15, "reason": "non_finite_loss"})
    run_id = house.create(steps=30, recovery={"on_non_finite": "rewind"})
    with house.daemon():
        run = house.becomes(run_id, "completed")
    assert run.skip_steps == [[15, 15]]
    assert run.rewinds == 1
    assert house.attempts(run_id)[1].start_step == 10


def test_f33_the_remedy_after_the_last_rewind_rewinds_once_more(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    nan = {"reason": "non_finite_loss"}
    house.behave(monkeypatch, **{f"a{n}": nan | {"fail_at": 14 + n} for n in (1, 2, 3)})
    recovery = {"on_non_finite": "rewind", "max_rewinds": 1}
    run_id = house.create(steps=30, recovery=recovery)
    with house.daemon():
        run = house.becomes(run_id, "failed")
        assert (run.rewinds, len(house.attempts(run_id))) == (1, 2)
        with house.db.read() as session:
            remedy = remedies.remedy(session, session.get_one(Run, run_id))
        assert remedy is not None
        house.ask(runs.resume, run_id, ResumeRequest.model_validate(remedy.request))
        run = house.becomes(run_id, "completed")
    assert (run.rewinds, run.skip_steps) == (2, [[15, 15], [17, 17]])
    house.check(run_id)


def test_f35_out_of_memory_does_not_loop_and_says_what_to_change(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    house.behave(monkeypatch, all={"fail_at": 3, "reason": "out_of_memory"})
    run_id = house.create(batch={"tokens": 4096, "device_batch_size": 8})
    with house.daemon():
        run = house.becomes(run_id, "failed")
    assert len(house.attempts(run_id)) == 1
    assert run.reason == "out_of_memory"
    assert "The plan estimated" in run.reason_message
    assert "device_batch_size 4 (it is 8)" in run.reason_message


def test_f38_changed_data_pauses(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    house.behave(monkeypatch, a1={"fail_at": 12, "reason": "data_changed"})
    run_id = house.create(steps=30)
    with house.daemon():
        run = house.becomes(run_id, "paused")
        assert run.reason == "data_changed"
        house.ask(runs.resume, run_id)
        house.becomes(run_id, "completed")
    house.check(run_id)


def test_f40_the_wall_clock_may_jump(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    real, offset = time.time, [0.0]
    monkeypatch.setattr(time, "time", lambda: real() + offset[0])
    house.behave(monkeypatch, a1={"crash_at": 25})
    run_id = house.create(steps=FOREVER)
    with house.daemon():
        house.reaches(run_id, 5)
        for jump in (86_400.0, -86_400.0, 0.0):
            offset[0] = jump
            step = house.run(run_id).step
            house.until(lambda step=step: house.run(run_id).step > step)
        house.until(lambda: house.last(run_id, lambda a: a.number == 2))
        offset[0] = 1e6
        house.ask(runs.request_pause, run_id)
        house.becomes(run_id, "paused")
    assert house.events(run_id, "signal") == []
    assert [a.outcome for a in house.attempts(run_id)] == ["crashed", "paused"]


def test_terminated_by_a_stranger_is_not_a_failure(house: House) -> None:
    run_id = house.create(steps=FOREVER)
    with house.daemon():
        house.reaches(run_id, 15)
        os.kill(house.pid(run_id), signal.SIGTERM)
        house.until(lambda: house.last(run_id, lambda a: a.number == 2 and a.last_step is not None))
    first, second = house.attempts(run_id)
    assert first.outcome == "terminated"
    assert second.start_step is not None
    assert second.start_step >= 15
    assert house.run(run_id).failures_without_progress == 0


def test_the_boot_id_is_written_with_the_attempt(house: House) -> None:
    run_id = house.create(steps=FOREVER)
    with house.daemon():
        house.pid(run_id)
    assert house.attempts(run_id)[0].handle["boot_id"] == boot_id()
