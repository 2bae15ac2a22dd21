"""`traind checkpoints`: list, save now, pin, unpin, delete."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from server.cli import options, output, waiting
from trainer.contract import units
from trainer.contract.metric_text import shown
from trainer.contract.text import clean

if TYPE_CHECKING:
    from server.schemas.checkpoints import CheckpointView
    from server.schemas.jobs import JobView

CheckpointArgument = Annotated[str, typer.Argument(help="Name or step of a checkpoint.")]


class _ListByDefault(TyperGroup):
    """`traind checkpoints RUN` is `traind checkpoints RUN`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and not args[0].startswith("-") and args[0] not in self.commands:
            args = ["list", *args]
        return super().parse_args(ctx, args)


def register(app: typer.Typer) -> None:
    group = typer.Typer(
        cls=_ListByDefault,
        help="Checkpoints of a run: list, save, pin, unpin, delete.",
        no_args_is_help=True,
    )
    group.command("list")(list_)
    for command in (save, pin, unpin, delete):
        group.command()(command)
    app.add_typer(group, name="checkpoints", rich_help_panel="Results")


def list_(
    run: options.RunArgument,
    superseded: Annotated[
        bool, typer.Option("--superseded", help="Include superseded checkpoints.")
    ] = False,
    json: options.Json = False,
) -> None:
    """List the checkpoints that a run can resume, extend or sample from."""
    with output.connect() as traind:
        found = traind.checkpoints(run, superseded=superseded)
    if json:
        return output.emit(found)
    rows = [
        (
            c.name, units.integer(c.step), units.num_bytes(c.bytes), c.why,
            shown("val_bpb", c.val_bpb), units.when(c.created_at),
            " ".join(
                mark
                for mark, holds in (
                    ("newest", c.newest), ("best", c.best), ("pinned", c.pinned),
                    ("superseded", c.superseded), (f"unusable: {c.bad}", bool(c.bad)),
                )
                if holds
            ),
        )
        for c in found
    ]  # fmt: skip
    columns = ("NAME", ">STEP", ">SIZE", "WHY", ">VAL BPB", "SAVED", "")
    output.table(columns, rows, "no checkpoints yet")
    return None


def save(
    run: options.RunArgument,
    pin: Annotated[
        bool, typer.Option("--pin", help="Pin the checkpoint: retention never deletes it.")
    ] = False,
    no_wait: options.NoWait = False,
    json: options.Json = False,
) -> None:
    """Save a checkpoint at the next step of the running trainer."""
    with output.connect() as traind:
        asked = traind.save_checkpoint(run, pin=pin)
        ended = asked if no_wait else waiting.for_job(traind, asked)

    def show(job: JobView) -> None:
        output.say(f"saved; see: traind checkpoints {run}")

    waiting.finish(ended, show, json)


def pin(
    run: options.RunArgument, checkpoint: CheckpointArgument, json: options.Json = False
) -> None:
    """Pin a checkpoint: retention never deletes it."""
    _set_pinned(run, checkpoint, True, json)


def unpin(
    run: options.RunArgument, checkpoint: CheckpointArgument, json: options.Json = False
) -> None:
    """Unpin a checkpoint: retention may delete it again."""
    _set_pinned(run, checkpoint, False, json)


def delete(
    run: options.RunArgument,
    checkpoint: CheckpointArgument,
    yes: options.Yes = False,
    json: options.Json = False,
) -> None:
    """Delete a checkpoint. One that a resume needs is never deleted."""
    with output.connect() as traind:
        found = _found(traind.checkpoints(run, superseded=True), checkpoint)
        size = units.num_bytes(found.bytes)
        if not options.confirmed(f"Delete checkpoint {clean(found.name)} ({size})?", yes):
            raise typer.Exit(output.FAILED)
        traind.delete_checkpoint(run, found.name)
    output.deleted(found.name, json)


def _set_pinned(run: str, checkpoint: str, pinned: bool, json: bool) -> None:
    with output.connect() as traind:
        found = _found(traind.checkpoints(run, superseded=True), checkpoint)
        after = traind.pin_checkpoint(run, found.name, pinned)
    if json:
        return output.emit(after)
    return output.say(f"{found.name} is {'pinned' if pinned else 'no longer pinned'}")


def _found(checkpoints: list[CheckpointView], wanted: str) -> CheckpointView:
    """Find a checkpoint by name or step; of several at one step, the current one."""
    matching = [c for c in checkpoints if wanted in (c.name, str(c.step))]
    if not matching:
        raise output.CommandRefused(
            f"there is no checkpoint {clean(wanted)}", "traind checkpoints RUN"
        )
    return min(matching, key=lambda c: c.superseded)
