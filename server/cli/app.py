"""The `traind` command: its subcommands and exit statuses.

Exit status: 0 done, 1 refused or failed, 2 usage error, 3 no daemon answers, 130 interrupted;
`watch` and `run --watch` add 4 (the run is paused or not started) and 5 (it was cancelled).
"""

from __future__ import annotations

import sys
from functools import partial
from types import ModuleType
from typing import Annotated

import typer

from server.cli import output, running
from server.cli.offline import interpreter


def main(arguments: list[str] | None = None) -> None:
    """Run one command and exit with its status."""
    words = sys.argv[1:] if arguments is None else arguments
    # the daemon keeps the imported modules in memory: 2 MB for those of every command
    parts = _serve_parts() if words[:1] == ["serve"] else ()
    running.run(partial(build(*parts), args=arguments, prog_name="traind"))


def build(*parts: ModuleType) -> typer.Typer:
    """Build the command line with the commands of `modules`, or of all modules."""
    app = typer.Typer(
        name="traind",
        help="Train GPTs on your own machine: start, watch, pause, resume and extend runs.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(root)
    for part in parts or _all_parts():
        part.register(app)
    app.command(
        rich_help_panel="Daemon",
        add_help_option=False,  # the demo's own options
        context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    )(demo)
    return app


def _serve_parts() -> tuple[ModuleType, ...]:
    from server.cli.offline import daemon

    return (daemon,)


def _all_parts() -> tuple[ModuleType, ...]:
    """Every command module, in the order of the help."""
    from server.cli import (
        checkpoints,
        extending,
        groups,
        jobs,
        lifecycle,
        listing,
        measures,
        mirroring,
        planning,
        power,
        scheduling,
        watching,
    )
    from server.cli.offline import backups, daemon, doctor

    return (
        lifecycle, watching, listing, extending, planning, checkpoints, measures, mirroring, jobs,
        daemon, backups, doctor, scheduling, groups, power,
    )  # fmt: skip


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import PackageNotFoundError, version

        try:
            print(f"traind {version('traind')}")
        except PackageNotFoundError:
            print("traind (from a source tree)")
        raise typer.Exit


def root(
    url: Annotated[
        str | None,
        typer.Option(help="URL of the daemon [TRAIND_URL, http://127.0.0.1:8321]."),
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    output.url.set(url)


def demo(context: typer.Context) -> None:
    """Run a demo: train a small GPT with its own daemon; pause, resume, extend, report."""
    interpreter.replace_by("server.demo", context.args)


if __name__ == "__main__":
    main()
