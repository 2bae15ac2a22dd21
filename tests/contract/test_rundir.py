"""Durable writes, locks and process identity; failpoints."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pydantic import BaseModel

from trainer.contract import failpoint, rundir
from trainer.contract.durable import replacing, sweep, write_durably, write_shared
from trainer.contract.exits import ExitRecord, read_exit, write_exit
from trainer.contract.reasons import Reason
from trainer.contract.rundir import Held, acquire, identify, is_held


def test_a_failed_durable_write_leaves_the_old_file_and_no_temp(tmp_path, monkeypatch):
    path = tmp_path / "x.json"
    write_durably(path, b"old")

    def failing(fd):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(OSError, match="Input/output"):
        write_durably(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_a_replaced_file_appears_whole_and_a_failure_leaves_the_old_one(tmp_path):
    path = tmp_path / "x.bin"
    with replacing(path) as file:
        file.write(b"first")
        assert not path.exists()
    assert path.read_bytes() == b"first"

    def interrupted():
        with replacing(path) as file:
            file.write(b"second")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_bytes() == b"first"
    assert [p.name for p in tmp_path.iterdir()] == ["x.bin"]


def test_who_may_read_a_file(tmp_path):
    before = os.umask(0o022)
    try:
        write_durably(tmp_path / "order.json", b"{}")
        write_shared(tmp_path / "new" / "folder" / "corpus.json", b"{}")
    finally:
        os.umask(before)
    assert (tmp_path / "order.json").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "new" / "folder" / "corpus.json").stat().st_mode & 0o777 == 0o644


def test_sweep_takes_what_dead_writers_left_and_nothing_else(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    child.wait()
    gone, ours = (tmp_path / f".a.bin.{pid}.tmp" for pid in (child.pid, os.getppid()))
    for path in (gone, ours, tmp_path / ".other.tmp", tmp_path / "a.bin"):
        path.write_bytes(b"")
    sweep(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {ours.name, ".other.tmp", "a.bin"}


def test_a_file_system_that_cannot_sync_a_directory_is_no_error(tmp_path, monkeypatch):
    failed = []

    def failing(fd):
        if os.path.isdir(f"/proc/self/fd/{fd}"):
            failed.append(fd)
            raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "fsync", failing)
    write_durably(tmp_path / "x.json", b"new")
    assert failed
    assert (tmp_path / "x.json").read_bytes() == b"new"


def test_a_lock_is_held_for_the_life_of_its_process(tmp_path):
    lock = tmp_path / "lock"
    code = (
        "import sys, time; from pathlib import Path; from trainer.contract.rundir import acquire;"
        "acquire(Path(sys.argv[1]), 'me'); print('held', flush=True); time.sleep(60)"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(lock)], stdout=subprocess.PIPE)
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == b"held\n"
        assert is_held(lock)
        with pytest.raises(Held) as caught:
            acquire(lock, "other")
        assert caught.value.holder == "me"
    finally:
        child.kill()
        child.wait()
    assert not is_held(lock)
    os.close(acquire(lock, "other"))
    child.stdout.close()


def test_f12_a_zombie_counts_as_dead():
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    deadline = time.monotonic() + 20
    while identify(child.pid) is not None and time.monotonic() < deadline:
        time.sleep(0.02)
    try:
        assert os.path.exists(f"/proc/{child.pid}") or sys.platform != "linux"
        assert identify(child.pid) is None
    finally:
        child.wait()


def test_identity_tells_a_process_from_another():
    own = identify(os.getpid())
    assert own is not None
    assert own == identify(os.getpid())
    assert identify(2**22 + 1) is None


def test_exit_record_survives_and_nonsense_is_none(tmp_path):
    record = ExitRecord(outcome="paused", reason=Reason.requested, step=7, unix_seconds=1.0)
    write_exit(tmp_path, record)
    assert read_exit(tmp_path) == record
    (tmp_path / "exit.json").write_text('{"outcome": 3')
    assert read_exit(tmp_path) is None


@pytest.mark.parametrize("reason", Reason)
def test_every_reason_has_a_sentence(reason):
    assert reason.sentence.endswith(".")
    assert reason.advice == "" or reason.advice.endswith(".")


def test_failpoints_count_down(monkeypatch):
    failpoint._points.cache_clear()
    monkeypatch.setenv("TRAIND_FAIL", "a=2*off->1*error(28);b=corrupt")
    try:
        failpoint.hit("a")
        failpoint.hit("a")
        with pytest.raises(OSError) as caught:
            failpoint.hit("a")
        assert caught.value.errno == errno.ENOSPC
        failpoint.hit("a")
        assert failpoint.corrupts("b")
        assert not failpoint.corrupts("c")
    finally:
        failpoint._points.cache_clear()


def test_a_failpoint_that_cannot_be_read_is_refused():
    with pytest.raises(ValueError, match="explode"):
        failpoint.parse("a=explode")


def test_layout_names():
    assert rundir.checkpoint_name(10_000, 3) == "step-000010000-a0003"


@pytest.mark.parametrize(
    ("step", "attempt"), [(0, 0), (130_000, 9_999), (999_999_999, 10_000), (10**9, 123_456)]
)
def test_a_checkpoint_name_has_no_last_number(step: int, attempt: int) -> None:
    name = rundir.checkpoint_name(step, attempt)
    assert rundir.parse_checkpoint_name(name) == (step, attempt)
    assert re.match(rundir.CHECKPOINT_PATTERN, name)


@pytest.mark.parametrize(
    "name",
    ["step-1-a1", ".removing-step-000000001-a0001", "step-x", "", "step-000000001-a0001\n",
     "step-٠٠٠٠٠٠٠٠١-a0001", f"step-{'9' * 30}-a0001"],
)  # fmt: skip
def test_other_names_are_no_checkpoints(name: str) -> None:
    assert rundir.parse_checkpoint_name(name) is None


def test_only_our_names_count_as_attempts(tmp_path) -> None:
    for name in ("0002", "²", "٣٣٣٣", "9" * 30, "0003.bak", "lost+found"):
        (tmp_path / "attempts" / name).mkdir(parents=True)
    assert rundir.RunDir(tmp_path).highest_attempt() == 2


def test_a_damaged_document_is_named_with_what_to_do(tmp_path) -> None:
    class Document(BaseModel):
        number: int

    for content in ("", "xx", "[]", '{"number": "x"}'):
        (tmp_path / "data.json").write_text(content)
        with pytest.raises(rundir.Damaged, match=r"data\.json is damaged \(.+\)\. Remove it$"):
            rundir.read_document(tmp_path / "data.json", Document, "Remove it")


def test_a_disk_without_locks_is_used_unlocked_and_it_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(fd: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    fd = acquire(tmp_path / "lock", "me")
    os.close(fd)
    assert "cannot be locked (No locks available)" in capsys.readouterr().err
    assert not is_held(tmp_path / "lock")
