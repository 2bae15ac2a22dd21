"""The demo cleans up behind itself: by Ctrl-C, by failure, and never a process that is not its own.

The whole story is what `make demo` runs; here it is interrupted.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from server.demo import own_daemon


def _demo(data_dir: Path, log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as file:
        command = [sys.executable, "-m", "server.cli.app", "demo", "--data-dir", str(data_dir)]
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=file,
            # as at a terminal, also where these tests run with Ctrl-C ignored
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip


def _left(data_dir: Path) -> list[psutil.Process]:
    """Living processes that name the demo's directory, the daemon and its trainers."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        named = any(str(data_dir) in part for part in process.info["cmdline"] or [])
        if named and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found


def test_an_interrupted_demo_leaves_nothing_running_and_can_run_again(tmp_path: Path):
    data_dir, log = tmp_path / "demo", tmp_path / "out"
    for number, status in ((signal.SIGINT, 130), (signal.SIGTERM, 130)):
        process = _demo(data_dir, log)
        try:
            deadline = time.monotonic() + 60
            while b"queued" not in log.read_bytes() and b"preparing" not in log.read_bytes():
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.05)
            process.send_signal(number)
            assert process.wait(60) == status, log.read_text()
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        assert not _left(data_dir)
        assert "run it again" in log.read_text()


CTRL_C_IN_EXEC = """
import os, signal, sys
from server.cli import app, output

def command(**_):
    try:
        exec("os.kill(os.getpid(), signal.SIGINT)\\nwhile True: pass")
    except KeyboardInterrupt:
        sys.exit(output.INTERRUPTED)

app.build = lambda *_: command
app.main([])
"""


def test_ctrl_c_while_a_class_is_being_made_ends_with_our_status(tmp_path: Path):
    """Where a bare KeyboardInterrupt passed an `exec`, CPython ends `python -m` by SIGINT: -2."""
    (tmp_path / "interrupted.py").write_text(CTRL_C_IN_EXEC)
    done = subprocess.run(
        [sys.executable, "-m", "interrupted"], timeout=60,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    assert done.returncode == 130


def test_a_daemon_that_does_not_start_is_said_with_its_last_words(tmp_path: Path):
    data_dir = tmp_path / "demo"
    data_dir.mkdir()
    (data_dir / "traind.db").write_bytes(b"this is no database" * 1000)
    process = _demo(data_dir, tmp_path / "out")
    assert process.wait(60) == 1
    said = (tmp_path / "out").read_text()
    assert "did not start" in said
    assert "Traceback" not in said
    assert not _left(data_dir)


def test_f11_only_the_process_with_that_start_time_is_ended():
    sleeper = subprocess.Popen(["sleep", "60"])
    try:
        started = psutil.Process(sleeper.pid).create_time()
        own_daemon._end(sleeper.pid, started - 5.0)  # an older process had this pid
        assert sleeper.poll() is None
        own_daemon._end(sleeper.pid, started)
        assert not psutil.pid_exists(sleeper.pid)  # reaped as well: it is a child of ours
    finally:
        if sleeper.poll() is None:
            sleeper.kill()
            sleeper.wait()


@pytest.mark.timeout(240)
def test_the_whole_story_is_told_to_its_end(tmp_path: Path):
    log = tmp_path / "out"
    command = [sys.executable, "-m", "server.cli.app", "demo", "--data-dir", str(tmp_path / "demo")]
    with log.open("wb") as file:
        done = subprocess.run([*command, "--steps", "20"], stdout=file, stderr=file, timeout=200)
    said = log.read_text()
    assert done.returncode == 0, said
    for chapter in ("pause:", "resume:", "extend:", "report", "a greedy sample", "dashboard"):
        assert chapter in said
    assert not _left(tmp_path / "demo")
