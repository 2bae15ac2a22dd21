"""Entry point of the demo: `python -m server.demo`, which `traind demo` executes.

The daemon and trainers that it starts are always stopped at its end (--keep leaves the daemon).
"""

from __future__ import annotations

import signal
import time
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from server.cli import output, running
from server.demo.own_daemon import Daemon, running_daemon
from server.demo.story import run_story
from trainer.contract import units
from trainer.contract.text import clean

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command()
def demo(
    data_dir: Annotated[Path, typer.Option(help="Directory for the demo's data.")] = Path(".demo"),
    steps: Annotated[
        int | None, typer.Option(min=10, help="Number of steps (default: the preset's).")
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the daemon running.")] = False,
) -> None:
    """Demo: start a daemon, train, pause, resume and extend a run, and show its report."""
    began = time.monotonic()
    # SIGTERM and SIGHUP unwind like Ctrl-C, so that the daemon and trainers are stopped
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, output.interrupt)
    try:
        with running_daemon(data_dir.absolute(), keep) as daemon:
            run_story(daemon, steps)
            output.say()
            output.say(f"done in {units.duration(time.monotonic() - began)}", "bold green")
            where_things_are(daemon, keep)
    except KeyboardInterrupt:
        output.note(
            "\ninterrupted; the demo's daemon and trainer are stopped; run it again at any time"
        )
        raise typer.Exit(output.INTERRUPTED) from None


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


if __name__ == "__main__":
    running.run(partial(app, prog_name="traind demo"))
