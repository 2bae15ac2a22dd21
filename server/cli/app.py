"""The `traind` command: its subcommands and exit statuses.

Exit status: 0 done, 1 refused or failed, 2 wrong usage, 3 no daemon answers, 130 interrupted;
`watch` and `run --watch` add 4 (the run waits for somebody) and 5 (it was cancelled).
"""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from typing import Annotated

import typer

from server.cli import (
    backups,
    checkpoints,
    daemon,
    demo,
    doctor,
    extending,
    groups,
    jobs,
    lifecycle,
    listing,
    measures,
    mirroring,
    output,
    planning,
    power,
    scheduling,
    watching,
)

app = typer.Typer(
    name="traind",
    help="Train GPTs on your own machine: start, watch, pause, resume and extend runs.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _part in (
    lifecycle, watching, listing, extending, planning, checkpoints, measures, mirroring, jobs,
    daemon, backups, doctor, demo, scheduling, groups, power,
):  # fmt: skip
    _part.register(app)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import PackageNotFoundError, version

        try:
            print(f"traind {version('traind')}")
        except PackageNotFoundError:
            print("traind (from a source tree)")
        raise typer.Exit


@app.callback()
def root(
    url: Annotated[
        str | None,
        typer.Option(help="Where the daemon listens [TRAIND_URL, http://127.0.0.1:8321]."),
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    output.url.set(url)


def main(arguments: list[str] | None = None) -> None:
    """Run one command and exit with its status."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else: it is ignored
        signal.signal(signal.SIGINT, output.interrupt)
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, ValueError):
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    try:
        try:
            app(args=arguments, prog_name="traind")
        finally:
            sys.stdout.flush()  # here, where a full disk behind it can still be a sentence
    except Exception as error:
        status = output.explain(error)
        if status is None:
            raise
        _drop_output()
        sys.exit(status)


def _drop_output() -> None:
    """What stdout could not take is not tried again when the interpreter ends."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
