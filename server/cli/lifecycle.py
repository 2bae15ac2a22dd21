"""`traind run`, `start`, `pause`, `resume`, `cancel`, `rename`, `delete`: the verbs of a run."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from server.cli import options, output, specfile, waiting
from trainer.contract import units
from trainer.contract.text import clean

if TYPE_CHECKING:
    from server.client import Client
    from server.schemas.runs import RunDetail

Wait = Annotated[bool, typer.Option("--wait", help="Wait until the run has reached the new state.")]


def register(app: typer.Typer) -> None:
    for command in (run, start, pause, resume, cancel, rename, delete):
        app.command(rich_help_panel="Runs")(command)


def run(
    spec: options.SpecArgument = None,
    name: Annotated[str | None, typer.Option(help="Name of the run.")] = None,
    preset: options.Preset = None,
    settings: options.SpecKeys = None,
    no_start: Annotated[
        bool, typer.Option("--no-start", help="Create the run without starting it.")
    ] = False,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Watch the run; the exit status is its outcome.")
    ] = False,
    json: options.Json = False,
) -> None:
    """Create a run from a spec and start it."""
    if spec is None and not (name or preset or settings):
        output.usage(
            "give a SPEC file, or --name and --preset", "traind run --name demo --preset demo"
        )
    body = specfile.read_spec(spec, settings or [], name=name, preset=preset)
    if no_start:
        body["start"] = False
    with output.connect() as traind:
        made = traind.create_run(body)
        if json:
            output.emit(made)
        else:
            _created(made)
        if watch:
            from server.cli import watching

            raise typer.Exit(watching.follow(traind, made.name, json=json))


def start(run: options.RunArgument, json: options.Json = False) -> None:
    """Start a run that was created with --no-start."""
    _act(lambda traind: traind.start(run), json)


def pause(run: options.RunArgument, wait: Wait = False, json: options.Json = False) -> None:
    """Pause a run: save a checkpoint, end the trainer and free the device."""
    _act(lambda traind: traind.pause(run), json, wait_for={"paused"} if wait else None)


def resume(
    run: options.RunArgument,
    device_batch_size: Annotated[
        int | None,
        typer.Option(min=1, help="Rows per forward pass; the total batch stays the same."),
    ] = None,
    compile_: Annotated[
        bool | None, typer.Option("--compile/--no-compile", help="Whether to compile the model.")
    ] = None,
    attention: Annotated[str | None, typer.Option(help="Attention backend.")] = None,
    gpus: Annotated[
        str | None, typer.Option(metavar="N|all", help="Number of GPUs from now on.")
    ] = None,
    devices: Annotated[
        str | None, typer.Option(metavar="cuda:0,cuda:1", help="Devices from now on.")
    ] = None,
    on_non_finite: Annotated[
        str | None,
        typer.Option(metavar="stop|rewind", help="On a NaN or infinite loss: stop or rewind."),
    ] = None,
    max_rewinds: Annotated[
        int | None,
        typer.Option(min=1, help="Maximum number of rewinds in all, those already made included."),
    ] = None,
    place: Annotated[
        list[str] | None,
        typer.Option(
            metavar="local|slurm|KEY=VALUE",
            help="Where to train from now on: local, slurm, or keys of the place, such as "
            "partition=gpu; repeatable.",
        ),
    ] = None,
    wait: Wait = False,
    json: options.Json = False,
) -> None:
    """Resume a paused, failed or cancelled run from its newest checkpoint. An override makes the
    resume 'approximate', except a number of devices that divides the run's lanes."""
    asked = {
        "device_batch_size": device_batch_size, "compile": compile_, "attention": attention,
        "gpus": int(gpus) if gpus and gpus.isdigit() else gpus,
        "devices": devices.split(",") if devices else None,
    }  # fmt: skip
    overrides = {key: value for key, value in asked.items() if value is not None}
    rewinding = {"on_non_finite": on_non_finite, "max_rewinds": max_rewinds}
    recovery = {key: value for key, value in rewinding.items() if value is not None}
    _act(
        lambda traind: traind.resume(
            run,
            overrides=overrides or None,
            recovery=recovery or None,
            place=specfile.read_place(place or []),
        ),
        json,
        wait_for={"running", "completed"} if wait else None,
    )


def cancel(
    run: options.RunArgument,
    yes: options.Yes = False,
    wait: Wait = False,
    json: options.Json = False,
) -> None:
    """Cancel a run without saving. A resume continues from its newest checkpoint."""
    if not options.confirmed(f"Cancel {clean(run)}?", yes):
        raise typer.Exit(output.FAILED)
    _act(lambda traind: traind.cancel(run), json, wait_for={"cancelled"} if wait else None)


def rename(
    run: options.RunArgument,
    name: Annotated[str, typer.Argument(help="New name, unique among runs.")],
    json: options.Json = False,
) -> None:
    """Rename a run. Its id does not change; its Prometheus counters continue under the new name."""
    with output.connect() as traind:
        after = traind.patch_run(run, {"name": name})
    if json:
        output.emit(after)
    else:
        output.say(f"{clean(run)} is now {after.name} ({after.id})")


def delete(run: options.RunArgument, yes: options.Yes = False, json: options.Json = False) -> None:
    """Permanently delete a run with its checkpoints and history."""
    with output.connect() as traind:
        found = traind.run(run)
        kept = traind.checkpoints(run)
        size = units.num_bytes(sum(c.bytes for c in kept))
        question = f"Delete {clean(found.name)} with {len(kept)} checkpoints ({size}) permanently?"
        if not options.confirmed(question, yes):
            raise typer.Exit(output.FAILED)
        traind.delete_run(found.id)
    output.deleted(found.name, json)


def _act(
    verb: Callable[[Client], RunDetail], json: bool, *, wait_for: set[str] | None = None
) -> None:
    """Apply a verb, wait for its effect if requested, and print the run's state."""
    with output.connect() as traind:
        after = verb(traind)
        if wait_for and after.state not in wait_for:
            ends = wait_for | {"failed", "completed", "cancelled"}
            waiting.for_run(traind, after.id, lambda now: now.state in ends)
            after = traind.run(after.id)
    if json:
        output.emit(after)
    else:
        output.say(f"{after.name} is {after.state}: {after.reason_message}")
    if wait_for and after.state not in wait_for:
        raise typer.Exit(output.FAILED)


def _created(made: RunDetail) -> None:
    plan = made.plan
    parts = (
        f"{units.count(plan.parameters.total)} parameters",
        f"{units.integer(plan.horizon.steps)} steps",
        f"{units.count(plan.horizon.tokens)} tokens",
        f"about {units.duration(plan.eta.total)} ({plan.eta.source})",
    )
    output.say(f"{made.name} ({made.id}) is {made.state}: {made.reason_message}")
    output.say("  " + ", ".join(parts))
    output.warn(plan.warnings)
    output.note(f"watch it with: traind watch {made.name}")
