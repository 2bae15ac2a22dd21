"""Arguments and options shared by several commands."""

from __future__ import annotations

from typing import Annotated

import typer

from server.cli import output


def run_names(incomplete: str) -> list[str]:
    """Run names for shell completion; empty if no daemon answers."""
    from server.client import Client, ClientError

    try:
        with Client(output.url.get(), timeout_seconds=1.0) as traind:
            page = traind.list_runs(limit=100)
    except ClientError:
        return []
    return [run.name for run in page.data if run.name.startswith(incomplete)]


RunArgument = Annotated[
    str, typer.Argument(metavar="RUN", help="Name or id of a run.", autocompletion=run_names)
]
SpecArgument = Annotated[
    str | None,
    typer.Argument(metavar="SPEC", help="YAML or JSON file of the spec, or - for stdin."),
]
Preset = Annotated[str | None, typer.Option(help="Preset: demo, rtx4070-d12, nanochat-d12, …")]
SpecKeys = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY.PATH=VALUE", help="Set one key of the spec; repeatable."),
]
Json = Annotated[bool, typer.Option("--json", help="Print the API's JSON, for scripts.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")]
WhereOption = Annotated[
    str | None,
    typer.Option(
        help="Where to run: auto, cpu, inline (in the running trainer) or device.", metavar="PLACE"
    ),
]
NoWait = Annotated[bool, typer.Option("--no-wait", help="Print the job and do not wait for it.")]
StepOption = Annotated[
    int | None, typer.Option(min=0, help="Step of the checkpoint; default: the newest.")
]


def confirmed(question: str, yes: bool) -> bool:
    """Ask for confirmation at a terminal; True to continue. A script needs --yes."""
    import sys

    if yes:
        return True
    if not sys.stdin.isatty():
        output.usage(f"{question} Not at a terminal: pass --yes.")
    answer = input(f"{question} [y/N] ")
    return answer.strip().lower() in ("y", "yes")
