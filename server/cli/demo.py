"""`traind demo`: train, pause, resume, extend and report in minutes, with a daemon of its own.

Start, watch, pause, resume, finish, extend, finish again; then the report and a sample. Whatever
ends it, the daemon and the trainers it started are gone afterwards (--keep leaves the daemon).
"""

from __future__ import annotations

import json as json_module
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from server.cli import interpreter, output, units, waiting
from server.text import clean, clean_lines

if TYPE_CHECKING:
    from server.client import Client
    from server.schemas import Progress

READY_SECONDS = 60.0
STOP_SECONDS = 30.0
STAGE_SECONDS = 900.0  # no single part takes nearly so long; a hang must end
LINE_SECONDS = 2.0
PAUSE_AT, EXTEND_BY = 0.4, 0.3  # of the run's steps


def register(app: typer.Typer) -> None:
    app.command(rich_help_panel="Daemon")(demo)


def demo(
    data_dir: Annotated[Path, typer.Option(help="Where the demo keeps its things.")] = Path(
        ".demo"
    ),
    steps: Annotated[int | None, typer.Option(min=10, help="Steps [the preset's].")] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the daemon running.")] = False,
) -> None:
    """Start a daemon of its own, train, pause, resume, extend, and show what came of it."""
    began = time.monotonic()
    # a service manager's or a terminal's goodbye unwinds like Ctrl-C, so that nothing stays behind
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, output.interrupt)
    try:
        with running_daemon(data_dir.absolute(), keep) as daemon:
            run_story(daemon, steps)
            output.say()
            output.say(f"done in {units.seconds(time.monotonic() - began)}", "bold green")
            where_things_are(daemon, keep)
    except KeyboardInterrupt:
        output.note(
            "\ninterrupted; the demo's daemon and trainer are stopped, run it again any time"
        )
        raise typer.Exit(output.INTERRUPTED) from None


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


def run_story(daemon: Daemon, steps: int | None) -> None:
    from server.client import Client

    with Client(daemon.url) as traind:
        body: dict = {"name": time.strftime("demo-%Y%m%d-%H%M%S"), "preset": "demo"}
        if steps:
            body["horizon"] = {"steps": steps}
        made = traind.create_run(body)
        name, plan = made.name, made.plan
        _chapter(f"POST /v1/runs: {name}")
        output.say(
            f"{units.count(plan.parameters.total)} parameters, {plan.horizon.steps} steps of "
            f"{plan.batch.tokens:,} tokens; the text is Python's own library"
        )
        go = DemoStage(daemon, traind, name)
        go.until(lambda now: now.step >= PAUSE_AT * now.end_step or now.state == "completed")
        _chapter("pause: checkpoint, end the trainer, free the device")
        traind.pause(name)
        go.until_state("paused", "completed")
        _chapter("resume: exactly there")
        if traind.progress(name).state == "paused":
            traind.resume(name)
        done = go.until_state("completed")
        more = max(1, round(EXTEND_BY * done.end_step))
        _chapter(f"extend: {more} steps more")
        answer = traind.extend(name, {"add_steps": more})
        output.warn(answer.warnings)
        go.until_state("completed")
        _chapter("report")
        output.say(traind.report(name).rstrip())
        _chapter("a greedy sample")
        go.sample("def main(")


@dataclass
class DemoStage:
    """Shows the run's progress until something is so."""

    daemon: Daemon
    traind: Client
    run: str

    def until_state(self, *states: str) -> Progress:
        return self.until(lambda now: now.state in states)

    def until(self, reached: Callable[[Progress], bool]) -> Progress:
        """The first progress that `reached` accepts. Raises Refused when the run fails."""
        with _progress_printer() as show:

            def each(now: Progress) -> None:
                show(now)
                self._remember_trainer()
                if not self.daemon.alive():
                    raise output.CommandRefused(f"the daemon ended; see {self.daemon.log}")

            return waiting.for_run(
                self.traind,
                self.run,
                lambda now: _unless_failed(now, reached(now), self.traind),
                timeout_seconds=STAGE_SECONDS,
                each=each,
            )

    def sample(self, prompt: str) -> None:
        job = self.traind.sample(self.run, {"prompts": [prompt], "max_tokens": 48})
        ended = waiting.for_job(self.traind, job)
        if ended.state != "completed":
            raise output.CommandRefused(f"the sample {ended.state}: {ended.message}")
        for made in (ended.result or {}).get("samples", []):
            output.say(f"{prompt}{str(made['text']).removeprefix(prompt)}")

    def _remember_trainer(self) -> None:
        """Note the trainer's pid with its start time, so that only it can be stopped later."""
        import psutil

        attempts = self.traind.attempts(self.run)
        if attempts and attempts[-1].pid and attempts[-1].ended_at is None:
            with suppress(psutil.Error):
                process = psutil.Process(attempts[-1].pid)
                self.daemon.trainers.add((process.pid, process.create_time()))


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
            daemon.process = None  # not ours to stop any more
    finally:
        _stop(daemon)


def where_things_are(daemon: Daemon, keep: bool) -> None:
    if daemon.process is None or keep:
        output.say(f"dashboard  {daemon.url}/")
        output.say(f"API docs   {daemon.url}/docs")
    else:
        again = f"traind serve --data-dir {clean(daemon.data_dir)}"
        output.say(f"dashboard  http://127.0.0.1:8321/      after: {again}")
        output.say("API docs   http://127.0.0.1:8321/docs")
    output.say(f"data       {daemon.data_dir}")
    output.say(f"log        {daemon.log}")


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
            start_new_session=True,  # Ctrl-C is for us; we stop the daemon in an orderly way
        )  # fmt: skip
    return Daemon("", data_dir, log, process)


def _left_running(data_dir: Path) -> Daemon | None:
    """The daemon that an earlier demo left on this directory with --keep, if it still answers."""
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
    """(URL, pid) that the daemon of this directory has written down."""
    try:
        listening = json_module.loads((data_dir / "daemon.json").read_bytes())
        return str(listening["url"]), int(listening["pid"])
    except (OSError, ValueError, KeyError, TypeError):
        return None, None


def _wait_until_ready(daemon: Daemon) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while not _is_ready(daemon):
        if not daemon.alive():
            raise output.CommandRefused(f"the daemon did not start:\n{_last_lines(daemon.log)}")
        if time.monotonic() > deadline:
            raise output.CommandRefused(f"the daemon is not ready; see {daemon.log}")
        time.sleep(0.05)


def _is_ready(daemon: Daemon) -> bool:
    """Whether it answers at the URL it has written down, which is then ours too."""
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
    """End the process that had this pid at that time, and no other."""
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


@contextmanager
def _progress_printer() -> Iterator[Callable[[Progress], None]]:
    """One line that changes at a terminal; a line every two seconds in a pipe."""
    from server.cli.view import bar_line

    console = output.stdout()
    if console.is_terminal:
        from rich.live import Live

        with Live(console=console, refresh_per_second=8, transient=False) as live:
            yield lambda now: live.update(bar_line(now, console.width), refresh=True)
        return
    last = [0.0, ""]

    def show(now: Progress) -> None:
        text = bar_line(now).plain
        settled = now.state in waiting.SETTLED_STATES
        if text != last[1] and (settled or time.monotonic() - float(last[0]) >= LINE_SECONDS):
            last[:] = [time.monotonic(), text]
            print(text, flush=True)

    yield show


def _unless_failed(now: Progress, reached: bool, traind: Client) -> bool:
    if now.state in ("failed", "cancelled") and not reached:
        tail = clean_lines(_log(traind, now.id))
        raise output.CommandRefused(
            f"the run {now.state}: {now.reason_message}\n{tail}", now.advice
        )
    return reached


def _log(traind: Client, run: str) -> str:
    from server.client import ApiError

    try:
        return traind.logs(run, tail=15).text
    except ApiError:  # it failed before there was an attempt
        return ""


def _chapter(title: str) -> None:
    output.say()
    output.say(f"── {title}", "bold cyan")


def _last_lines(path: Path, count: int = 15) -> str:
    with suppress(OSError):
        return "\n".join(path.read_text(errors="replace").splitlines()[-count:])
    return ""


@contextmanager
def _no_interrupts() -> Iterator[None]:
    """A second Ctrl-C must not stop the stopping."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
