"""The demo's own daemon: starts it, waits until it is ready, stops it and its trainers."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from server.cli import output
from server.cli.offline import interpreter

READY_SECONDS = 60.0
STOP_SECONDS = 30.0


@dataclass
class Daemon:
    """The demo's daemon. process: None when an earlier demo left it running (--keep)."""

    url: str
    data_dir: Path
    log: Path
    process: subprocess.Popen[bytes] | None
    trainers: set[tuple[int, float]] = field(default_factory=set)  # (pid, its start time)

    def alive(self) -> bool:
        return self.process is None or self.process.poll() is None


@contextmanager
def running_daemon(data_dir: Path, keep: bool) -> Iterator[Daemon]:
    """A daemon on a free loopback port, or the one an earlier `--keep` left on this directory."""
    data_dir.mkdir(parents=True, exist_ok=True)
    daemon = _left_running(data_dir) or _start(data_dir)
    try:
        _wait_until_ready(daemon)
        output.say(f"daemon at {daemon.url}, data in {daemon.data_dir}")
        yield daemon
        if keep:
            daemon.process = None  # --keep: it is not stopped
    finally:
        _stop(daemon)


def _start(data_dir: Path) -> Daemon:
    log = data_dir / "daemon.log"
    command = [
        sys.executable, "-P", "-m", "server.cli.app", "serve", "--data-dir", str(data_dir),
        "--host", "127.0.0.1", "--port", "0", "--auth", "auto", "--stop-trainers",
    ]  # fmt: skip
    with log.open("ab") as file:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=file,
            env=interpreter.environment(),
            start_new_session=True,  # Ctrl-C must not reach the daemon; _stop ends it in order
        )  # fmt: skip
    return Daemon("", data_dir, log, process)


def _left_running(data_dir: Path) -> Daemon | None:
    """The daemon that an earlier demo left running with --keep, if it still responds."""
    from server.client import Client, ClientError

    url, _ = _where(data_dir)
    try:
        with Client(url or "http://127.0.0.1:0", timeout_seconds=5.0) as traind:
            if Path(traind.system().data_dir) != data_dir:
                return None
    except ClientError:
        return None
    return Daemon(str(url), data_dir, data_dir / "daemon.log", None)


def _where(data_dir: Path) -> tuple[str | None, int | None]:
    """(URL, pid) from the daemon.json of this directory; (None, None) without one."""
    try:
        listening = json.loads((data_dir / "daemon.json").read_bytes())
        return str(listening["url"]), int(listening["pid"])
    except (OSError, ValueError, KeyError, TypeError):
        return None, None


def _wait_until_ready(daemon: Daemon) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while not _is_ready(daemon):
        if not daemon.alive():
            raise output.CommandRefused(f"the daemon did not start:\n{_last_lines(daemon.log)}")
        if time.monotonic() > deadline:
            raise output.CommandRefused(
                f"the daemon did not become ready in time; see {daemon.log}"
            )
        time.sleep(0.05)


def _is_ready(daemon: Daemon) -> bool:
    """True if the daemon is ready. Sets `daemon.url` to the URL in its daemon.json."""
    from server.client import Client

    if daemon.process is not None:
        url, pid = _where(daemon.data_dir)
        if url is None or pid != daemon.process.pid:
            return False
        daemon.url = url
    with Client(daemon.url) as traind:
        return traind.is_ready()


def _stop(daemon: Daemon) -> None:
    """Stop the daemon by SIGTERM, then its remaining processes by pid."""
    if daemon.process is None:
        return
    with _no_interrupts():
        daemon.process.terminate()
        try:
            daemon.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            daemon.process.kill()
            daemon.process.wait()
        for pid, started in daemon.trainers:
            _end(pid, started)


def _end(pid: int, started: float) -> None:
    """End the process with this pid and start time, and no other."""
    import psutil

    with suppress(psutil.Error):
        process = psutil.Process(pid)
        if process.create_time() != started:
            return
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except psutil.TimeoutExpired:
            process.kill()


def _last_lines(path: Path, count: int = 15) -> str:
    with suppress(OSError):
        return "\n".join(path.read_text(errors="replace").splitlines()[-count:])
    return ""


@contextmanager
def _no_interrupts() -> Iterator[None]:
    """Ignore interrupts, so that a second Ctrl-C does not abort the shutdown."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
