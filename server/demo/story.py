"""The demo's steps: start, watch, pause, resume, finish, extend, finish again; then the report
and a sample."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from server.cli import output, waiting
from server.demo.own_daemon import Daemon
from trainer.contract import units
from trainer.contract.text import clean_lines

if TYPE_CHECKING:
    from server.client import Client
    from server.schemas.progress import Progress

STAGE_SECONDS = 900.0  # far above the duration of any stage; ends a hang
LINE_SECONDS = 2.0
PAUSE_AT, EXTEND_BY = 0.4, 0.3  # of the run's steps


def run_story(daemon: Daemon, steps: int | None) -> None:
    from server.client import Client

    with Client(daemon.url) as traind:
        body: dict = {"name": f"demo-{units.stamp()}", "preset": "demo"}
        if steps:
            body["horizon"] = {"steps": steps}
        made = traind.create_run(body)
        name, plan = made.name, made.plan
        _chapter(f"POST /v1/runs: {name}")
        output.say(
            f"{units.count(plan.parameters.total)} parameters, {plan.horizon.steps} steps of "
            f"{plan.batch.tokens:,} tokens; corpus: the source of Python's standard library"
        )
        go = DemoStage(daemon, traind, name)
        go.until(lambda now: now.step >= PAUSE_AT * now.end_step or now.state == "completed")
        _chapter("pause: checkpoint, end the trainer, free the device")
        traind.pause(name)
        go.until_state("paused", "completed")
        _chapter("resume: from the same step")
        if traind.progress(name).state == "paused":
            traind.resume(name)
        done = go.until_state("completed")
        more = max(1, round(EXTEND_BY * done.end_step))
        _chapter(f"extend: {more} more steps")
        answer = traind.extend(name, {"add_steps": more})
        output.warn(answer.warnings)
        go.until_state("completed")
        _chapter("report")
        output.say(traind.report(name).rstrip())
        _chapter("a greedy sample")
        go.sample("def main(")


@dataclass
class DemoStage:
    """A stage of the demo: shows the progress of the run until a condition holds."""

    daemon: Daemon
    traind: Client
    run: str

    def until_state(self, *states: str) -> Progress:
        return self.until(lambda now: now.state in states)

    def until(self, reached: Callable[[Progress], bool]) -> Progress:
        """Wait until `reached` accepts the progress. Raises CommandRefused if the run fails."""
        with _progress_printer() as show:

            def each(now: Progress) -> None:
                show(now)
                self._remember_trainer()
                if not self.daemon.alive():
                    raise output.CommandRefused(f"the daemon exited; see {self.daemon.log}")

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
        """Record pid and start time of the trainer, so that only it is stopped later."""
        import psutil

        attempts = self.traind.attempts(self.run)
        if attempts and attempts[-1].pid and attempts[-1].ended_at is None:
            with suppress(psutil.Error):
                process = psutil.Process(attempts[-1].pid)
                self.daemon.trainers.add((process.pid, process.create_time()))


@contextmanager
def _progress_printer() -> Iterator[Callable[[Progress], None]]:
    """Show progress: one live line on a terminal, a line every LINE_SECONDS in a pipe."""
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
    except ApiError:  # the run failed before its first attempt
        return ""


def _chapter(title: str) -> None:
    output.say()
    output.say(f"── {title}", "bold cyan")
