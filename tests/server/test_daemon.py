"""The daemon's process: one per data directory, ready soon, small, ended in order."""

from __future__ import annotations

import json
import logging
import re
import resource
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from sqlalchemy import select

from server.daemon.serve import JsonLines, PlainLines
from server.database.tables import Attempt, Point
from server.launch import process
from tests.server.house import House, launcher
from tests.serving import Serving


class Daemon(Serving):
    """Its trainer is the fake one; below the command line, whose greeting is no line of the log."""

    command = (
        sys.executable, "-c", "import sys; from server.daemon.serve import serve; "
        "from server.settings import Settings; sys.exit(serve(Settings()))",
    )  # fmt: skip

    def __init__(self, directory: Path, number: int, **settings: Any) -> None:
        defaults = {
            "trainer_python": launcher(directory),
            "tick_seconds": 0.05,
            "log_level": "info",
        }
        told = {f"TRAIND_{k.upper()}": str(v) for k, v in {**defaults, **settings}.items()}
        super().__init__(directory, **told)
        self.log = directory / f"daemon-{number}.log"
        self.launch()

    def words(self) -> str:
        """What it said, once it has ended."""
        self.process.wait(30)
        return self.log.read_text()

    def end(self, number: signal.Signals = signal.SIGTERM) -> str:
        """Its words after it ended on this signal."""
        self.process.send_signal(number)
        return self.words()


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Any]:
    started: list[Daemon] = []

    def start(**settings: Any) -> Daemon:
        started.append(Daemon(tmp_path, len(started), **settings))
        return started[-1]

    yield start
    for one in started:
        if one.process.poll() is None:
            one.end(signal.SIGKILL)
    with _rows(tmp_path) as house:
        for attempt in _attempts(house):
            process.kill_carriers(attempt.token)


@contextmanager
def _rows(directory: Path) -> Iterator[House]:
    house = House(directory)
    yield house
    house.db.close()


def _attempts(house: House) -> list[Attempt]:
    with house.db.read() as session:
        return session.query(Attempt).order_by(Attempt.number).all()


def _start_run(url: str, data_dir: Path) -> str:
    body = {"name": "demo", "start": False, "horizon": {"steps": 100_000}}
    run_id = httpx.post(f"{url}/v1/runs", json=body).json()["id"]
    run_dir = data_dir / "runs" / run_id
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "data.json").write_text("{}")
    assert httpx.post(f"{url}/v1/runs/{run_id}/start").status_code == 202
    _steps_past(url, 0)
    return run_id


def _steps_past(url: str, step: int, seconds: float = 15) -> float:
    """How long it took until the run stood beyond `step`."""
    began = time.monotonic()
    while httpx.get(f"{url}/v1/runs/demo/progress").json()["step"] <= step:
        assert time.monotonic() - began < seconds
        time.sleep(0.02)
    return time.monotonic() - began


def test_the_data_directory_is_its_owners_alone(daemon: Any, tmp_path: Path) -> None:
    """What daemon and trainer make, and what lay there open to others before the start."""
    first = daemon()
    first.wait_ready()
    _start_run(first.url, first.data_dir)
    first.end()
    left_open = first.data_dir / "runs" / "left-open"
    left_open.write_text("")
    for path, mode in ((left_open, 0o644), (first.data_dir, 0o755)):
        path.chmod(mode)
    second = daemon()
    second.wait_ready()
    _steps_past(second.url, httpx.get(f"{second.url}/v1/runs/demo/progress").json()["step"])
    everything = [second.data_dir, *second.data_dir.rglob("*")]
    assert len(everything) > 10
    assert [str(p) for p in everything if not p.is_symlink() and p.stat().st_mode & 0o077] == []


def _ingesting(daemon: Daemon) -> psutil.Process:
    """The ingestion process: the daemon's child that runs the same command."""
    parent = psutil.Process(daemon.process.pid)
    (found,) = (child for child in parent.children() if child.cmdline() == parent.cmdline())
    return found


def test_f15_a_second_daemon_names_the_holder_and_leaves_the_first_alone(daemon: Any) -> None:
    first = daemon()
    url = first.wait_ready()
    second = daemon()
    words = second.words()
    assert second.process.returncode == 1
    assert f"pid {first.process.pid}" in words
    assert "Traceback" not in words
    assert httpx.get(f"{url}/readyz").status_code == 200
    first.end(signal.SIGKILL)
    third = daemon()
    third.wait_ready()
    third.end()
    assert third.process.returncode == 0


def test_sigterm_leaves_the_trainer_and_the_next_daemon_takes_it_back(daemon: Any) -> None:
    first = daemon()
    _start_run(first.wait_ready(), first.data_dir)
    first.end()
    assert first.process.returncode == 0
    with _rows(first.data_dir.parent) as house:
        (attempt,) = _attempts(house)
        assert process.carries(attempt.pid or 0, attempt.token)
        before = house.run(attempt.run_id).step
    second = daemon()
    second.wait_ready()
    with _rows(first.data_dir.parent) as house:
        assert house.run(attempt.run_id).step > before  # taken back before it said it was ready
        assert len(_attempts(house)) == 1


def test_sigterm_with_stop_trainers_waits_for_their_checkpoint(daemon: Any) -> None:
    only = daemon(stop_trainers=True)
    _start_run(only.wait_ready(), only.data_dir)
    only.end()
    assert only.process.returncode == 0
    with _rows(only.data_dir.parent) as house:
        (attempt,) = _attempts(house)
        assert attempt.outcome == "terminated"
        assert process.carriers(attempt.token) == []


def test_it_is_small_and_has_no_torch(daemon: Any) -> None:
    only = daemon()
    only.wait_ready()
    both = [psutil.Process(only.process.pid), _ingesting(only)]
    assert sum(each.memory_full_info().pss for each in both) < 150e6
    for each in both:
        assert not any("torch" in m.path or "pyarrow" in m.path for m in each.memory_maps())
    assert (only.data_dir / "daemon.json").exists()
    only.end()
    assert not (only.data_dir / "daemon.json").exists()


def test_reports_are_read_without_the_process_that_reads_them(daemon: Any) -> None:
    only = daemon()
    url = only.wait_ready()
    _start_run(url, only.data_dir)
    _ingesting(only).kill()
    _steps_past(url, httpx.get(f"{url}/v1/runs/demo/progress").json()["step"])
    words = only.end()
    assert only.process.returncode == 0
    assert "it restarts in" in words
    assert "Traceback" not in words
    with _rows(only.data_dir.parent) as house:
        (attempt,) = _attempts(house)
        with house.db.read() as session:
            steps = list(session.scalars(select(Point.step).order_by(Point.step)))
        assert steps == list(range((attempt.last_step or 0) + 1))


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_the_process_that_ingests_ends_with_its_daemon(daemon: Any, how: signal.Signals) -> None:
    only = daemon()
    only.wait_ready()
    child = _ingesting(only)
    child.send_signal(signal.SIGINT)  # as Ctrl-C does, which reaches the whole group
    only.end(how)
    child.wait(10)


def test_short_answers_on_a_kept_connection_do_not_wait_for_acknowledgements(daemon: Any) -> None:
    """With Nagle's algorithm each of them takes 40 ms, on the quietest machine."""
    one = daemon()
    one.wait_ready()
    took = []
    with httpx.Client(base_url=one.url) as client:
        for _ in range(20):
            began = time.monotonic()
            client.get("/healthz").raise_for_status()
            took.append(time.monotonic() - began)
    assert min(took[5:]) < 0.03, took


def test_idle_costs_less_than_a_hundredth_of_a_core(daemon: Any) -> None:
    only = daemon(tick_seconds=0.25)
    only.wait_ready()
    found = psutil.Process(only.process.pid)
    time.sleep(0.5)
    before = found.cpu_times()
    time.sleep(3)
    after = found.cpu_times()
    assert (after.user + after.system) - (before.user + before.system) <= 0.03


def test_an_address_in_use_is_said_at_once(daemon: Any) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        only = daemon(port=port)
        words = only.words()
    assert only.process.returncode == 1
    assert f"port {port} cannot be used" in words
    assert "Traceback" not in words


def test_f32_a_directory_that_cannot_be_used_is_refused_clearly(
    tmp_path: Path, daemon: Any
) -> None:
    (tmp_path / "data").write_text("a file where the directory should be")
    only = daemon()
    words = only.words()
    assert only.process.returncode == 1
    assert "--data-dir" in words
    assert "Traceback" not in words
    (tmp_path / "data").unlink()


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="needs prlimit")
def test_f32_without_file_descriptors_it_waits_and_harms_nobody(daemon: Any) -> None:
    """Nothing can be opened, so no process can be seen: none is taken for dead, none is killed."""
    only = daemon()
    url = only.wait_ready()
    _start_run(url, only.data_dir)
    before = resource.prlimit(only.process.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(only.process.pid, resource.RLIMIT_NOFILE, (3, before[1]))
    time.sleep(1.5)  # several ticks that see nothing
    resource.prlimit(only.process.pid, resource.RLIMIT_NOFILE, before)
    step = httpx.get(f"{url}/v1/runs/demo/progress").json()["step"]
    _steps_past(url, step)
    words = only.end()
    assert only.process.returncode == 0
    assert "Too many open files" in words
    with _rows(only.data_dir.parent) as house:
        (attempt,) = _attempts(house)
        assert len(process.carriers(attempt.token)) == 1


def test_f50_beyond_loopback_needs_to_be_meant(daemon: Any) -> None:
    only = daemon(host="0.0.0.0")
    words = only.words()
    assert only.process.returncode == 1
    assert "--allow-remote" in words


HOSTILE_WORDS = (
    "a\n2026-01-01 00:00:00 CRITICAL forged", "\x1b[2J\x1b]0;title\x07", "shown\rhidden",
    "\x00\x7f\x9b", "\u202egnp.exe", "\ud800", "\U000e0068",
)  # fmt: skip


@pytest.mark.parametrize("words", HOSTILE_WORDS)
@pytest.mark.parametrize("kind", [JsonLines, PlainLines])
def test_f54_a_record_of_the_log_is_one_line_and_holds_no_control_byte(
    kind: type[logging.Formatter], words: str
) -> None:
    record = logging.LogRecord("traind", logging.ERROR, "f", 1, "run %s", (words,), None)
    line = kind().format(record)
    assert line.isprintable()
    assert words not in line
    assert all(part in line for part in ("run", *re.findall(r"[a-z]{4,}", words)))
    line.encode()


def test_f54_an_exception_cannot_look_like_a_record() -> None:
    try:
        raise ValueError("x\n2026-01-01 00:00:00 CRITICAL forged \x1b[2J")
    except ValueError:
        record = logging.LogRecord("traind", logging.ERROR, "f", 1, "failed", (), sys.exc_info())
    first, *rest = PlainLines("%(message)s").format(record).split("\n")
    assert first == "failed"
    assert all(line.startswith("    ") and line.isprintable() for line in rest)


def test_the_log_is_one_json_object_a_line(daemon: Any) -> None:
    only = daemon(log_format="json")
    only.wait_ready()
    lines = [json.loads(line) for line in only.end().splitlines()]
    assert {"ts", "level", "logger", "message"} <= set(lines[0])


def test_a_lock_file_deleted_under_a_live_daemon_stops_it_and_admits_no_second(
    daemon: Any,
) -> None:
    first = daemon()
    url = first.wait_ready()
    (first.data_dir / "daemon.lock").unlink()
    second = daemon()
    words = second.words()
    assert second.process.returncode == 1
    assert "Another traind serves" in words
    with suppress(httpx.HTTPError):
        assert httpx.get(f"{url}/readyz").status_code == 503
    assert "daemon.lock was deleted" in first.words()  # it ends by itself
    assert first.process.returncode == 1
    third = daemon()
    third.wait_ready()
    third.end()
    assert third.process.returncode == 0


def test_the_wal_deleted_under_a_live_daemon_loses_nothing_that_was_acknowledged(
    daemon: Any,
) -> None:
    first = daemon()
    url = first.wait_ready()
    body = {"name": "acknowledged", "start": False}
    assert httpx.post(f"{url}/v1/runs", json=body).status_code == 201
    (first.data_dir / "traind.db-wal").unlink()
    (first.data_dir / "traind.db-shm").unlink()
    assert httpx.get(f"{url}/readyz").status_code == 503
    assert httpx.post(f"{url}/v1/runs", json={"name": "lost"}).status_code == 503
    first.end(signal.SIGKILL)
    again = daemon()
    assert httpx.get(f"{again.wait_ready()}/v1/runs/acknowledged").status_code == 200
    again.end()
