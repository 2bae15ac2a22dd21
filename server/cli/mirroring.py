"""`traind mirror`: copy the curves of a run to TensorBoard or Weights & Biases."""

from __future__ import annotations

import time
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Annotated

import typer

from server.cli import options, output, waiting
from trainer.contract.text import clean


def register(app: typer.Typer) -> None:
    app.command(rich_help_panel="Results")(mirror)


def mirror(
    run: options.RunArgument,
    tensorboard: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write event files into DIR/<run>."),
    ] = None,
    wandb: Annotated[
        str | None, typer.Option(metavar="PROJECT", help="Log to this Weights & Biases project.")
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Continue until the run has ended.")
    ] = False,
    every: Annotated[
        float, typer.Option(min=0.1, metavar="S", help="Polling interval with --follow.")
    ] = 10.0,
    json: options.Json = False,
) -> None:
    """Copy the curves of a run to TensorBoard or Weights & Biases."""
    from server.client import mirrors

    if tensorboard is None and wandb is None:
        output.usage("give a target: --tensorboard DIR or --wandb PROJECT")
    with output.connect() as traind, ExitStack() as open_mirrors:
        shown = traind.run(run)
        found: list[mirrors.Mirror] = []
        try:
            if tensorboard is not None:
                found.append(mirrors.TensorBoard(tensorboard, shown))
                open_mirrors.enter_context(closing(found[-1]))
            if wandb is not None:
                found.append(mirrors.WeightsAndBiases(wandb, shown))
                open_mirrors.enter_context(closing(found[-1]))
        except mirrors.Missing as error:
            raise output.CommandRefused(str(error)) from error
        except OSError as error:
            raise output.CommandRefused(
                f"{tensorboard} cannot be written: {error.strerror}"
            ) from error
        copier = mirrors.Copier(traind, shown.id, found)
        while True:
            state = waiting.retrying(lambda: traind.progress(shown.id)).state
            waiting.retrying(copier.copy)
            if not follow or state in waiting.SETTLED_STATES:
                break
            time.sleep(every)
    if json:
        return output.emit({"run": shown.name, "step": copier.last + 1, "state": state})
    output.say(f"copied {clean(shown.name)} up to step {copier.last + 1:,}")
    return None
