"""`traind extend`: previews the learning rate of a new phase, then asks for confirmation."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from server.cli import options, output, plot
from trainer.contract import units
from trainer.contract.text import clean

if TYPE_CHECKING:
    from server.client import Client
    from server.schemas.runs import ExtendAnswer
    from trainer.contract.extend import CurvePoint, ExtendPreview


def register(app: typer.Typer) -> None:
    app.command(rich_help_panel="Runs")(extend)


def extend(
    run: options.RunArgument,
    to: Annotated[int | None, typer.Option("--to", min=1, help="New final step.")] = None,
    add_steps: Annotated[
        int | None, typer.Option(min=1, help="Number of additional steps.")
    ] = None,
    add_tokens: Annotated[
        int | None, typer.Option(min=1, help="Number of additional tokens.")
    ] = None,
    mode: Annotated[
        str | None,
        typer.Option(help="replan (curve over the new horizon), hold, rewarm or decay."),
    ] = None,
    rewarm_steps: Annotated[
        int | None,
        typer.Option(min=0, help="Steps of the ramp from the current LR; 0 jumps, like nanochat."),
    ] = None,
    peak_frac: Annotated[
        float | None, typer.Option(help="rewarm: new peak LR, as a fraction of the planned peak.")
    ] = None,
    decay_ratio: Annotated[
        float | None,
        typer.Option(help="rewarm, decay: fraction of the phase in which the LR decays."),
    ] = None,
    final_lr_frac: Annotated[
        float | None, typer.Option(help="Final LR, as a fraction of the planned peak.")
    ] = None,
    warmdown_ratio: Annotated[
        float | None,
        typer.Option(help="replan: length of the warmdown, as a fraction of the horizon."),
    ] = None,
    shape: Annotated[str | None, typer.Option(help="Shape of the decay: linear or cosine.")] = None,
    keep_weight_decay: Annotated[
        bool,
        typer.Option("--keep-weight-decay", help="Hold weight decay at its value at the joint."),
    ] = False,
    at: Annotated[
        str | None,
        typer.Option(help="Where to begin: end (of the current phase) or now (the next step)."),
    ] = None,
    from_checkpoint: Annotated[
        str | None, typer.Option(help="Checkpoint to branch from; later steps are superseded.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the new phase.")] = None,
    start: Annotated[
        bool | None, typer.Option("--start/--no-start", help="Whether to start a paused run.")
    ] = None,
    preview: Annotated[
        bool, typer.Option("--preview", help="Show the new schedule and change nothing.")
    ] = False,
    picture: Annotated[
        Path | None,
        typer.Option("--picture", help="Write the preview as a picture to this .svg or .png file."),
    ] = None,
    yes: options.Yes = False,
    json: options.Json = False,
) -> None:
    """Extend a run. At a terminal, show the new schedule and ask for confirmation."""
    curve = {
        "mode": mode, "rewarm_steps": rewarm_steps, "peak_frac": peak_frac,
        "decay_ratio": decay_ratio, "final_lr_frac": final_lr_frac,
        "warmdown_ratio": warmdown_ratio, "shape": shape,
        "weight_decay": "keep" if keep_weight_decay else None,
    }  # fmt: skip
    ask = _without_none(
        {
            "to_step": to, "add_steps": add_steps, "add_tokens": add_tokens, "at": at,
            "from_checkpoint": from_checkpoint, "name": name, "start": start,
            "schedule": _without_none(curve) or None,
        }
    )  # fmt: skip
    if sum(value is not None for value in (to, add_steps, add_tokens)) != 1:
        output.usage("give exactly one of --to, --add-steps, --add-tokens")
    if picture is not None:
        _check_picture(picture, preview)
    asks = not (yes or json) and sys.stdin.isatty()
    with output.connect() as traind:
        if preview or asks:
            planned = traind.extend(run, ask, dry_run=True)
            if picture is not None:
                _write_picture(_picture(traind, run, ask, picture), picture)
            if json:
                return output.emit(planned)
            _show(planned)
            if preview or planned.plan is None:
                return None
            if not options.confirmed(f"Extend {clean(run)} like this?", yes=False):
                raise typer.Exit(output.FAILED)
        done = traind.extend(run, ask)
    if json:
        return output.emit(done)
    return _print_result(done, warned=asks)


def draw(preview: ExtendPreview, *, width: int = 72, height: int = 14) -> plot.Plot:
    """Draw the LR multiplier: the old plan, and the new curve from the joint."""
    joint = preview.start_step
    return plot.draw(
        [
            plot.Curve(_lr(preview.present_curve), "cyan"),
            plot.Curve(_lr(preview.curve), "bold green"),
        ],
        width=width,
        height=height,
        joint=joint,
        x_ticks=sorted({0, preview.warmdown_start, joint, preview.end_step}),
    )


def describe(preview: ExtendPreview) -> list[tuple[str, str]]:
    """Describe the joint and the size of the new phase, as names and values."""
    joint = preview.joint
    rows = [
        ("steps", f"{preview.start_step:,} to {preview.end_step:,} "
                  f"({units.integer(preview.end_step - preview.start_step)})"),
        ("tokens", f"{preview.tokens:,} ({units.flops(preview.flops)})"),
        ("mode", f"{preview.schedule.mode}, {preview.schedule.shape}; "
                 f"warmdown from step {preview.warmdown_start:,}"),
        ("learning rate", _pair(joint.lr_multiplier, "of its peak")),
        ("weight decay", _pair(joint.weight_decay, "")),
        ("momentum", _pair(joint.momentum, "")),
    ]  # fmt: skip
    if preview.eta:
        rate = f"{units.rate(preview.eta.tokens_per_second)}, {preview.eta.source}"
        rows.append(("takes about", f"{units.duration(preview.eta.total)} ({rate})"))
    if preview.discarded_steps:
        rows.append(("superseded", f"{preview.discarded_steps:,} steps after the joint"))
    return rows


def _show(answer: ExtendAnswer) -> None:
    if answer.plan is None:
        output.say(f"{answer.run.name} already ends at step {answer.run.end_step:,}: no change")
        return
    console = output.stdout()
    output.say(f"Learning rate of {answer.run.name}, as a multiple of the planned peak", "bold")
    width = max(24, min(console.width, 100) - 10)
    for row in draw(answer.plan, width=width).framed():
        line = output.styled("")
        for cell in row:
            line.append(cell.char, cell.style or None)
        console.print(line, soft_wrap=True)
    legend = output.styled("  ━ so far", "cyan").append("   ━ new phase", "bold green")
    console.print(legend.append("   ┊ joint", "yellow"))
    output.pairs("New phase", describe(answer.plan))
    output.pairs(
        "Other modes", [(a.mode, _after_colon(a.sentence)) for a in answer.plan.alternatives]
    )
    output.warn(answer.warnings)


def _check_picture(file: Path, preview: bool) -> None:
    if not preview:
        output.usage("--picture goes with --preview")
    if file.suffix.lower() not in (".svg", ".png"):
        output.usage("--picture writes files whose name ends in .svg or .png")


def _picture(traind: Client, run: str, ask: dict[str, Any], file: Path) -> bytes:
    """The preview as the daemon draws it, in the format of the file's name."""
    from server.client import ApiError

    try:
        is_png = file.suffix.lower() == ".png"
        return traind.extend_picture(run, ask, "image/png" if is_png else "image/svg+xml")
    except ApiError as error:
        if error.code != "not-acceptable":
            raise
        raise output.CommandRefused(
            "a PNG needs resvg where the daemon runs: pip install 'traind[png]' there, or choose "
            ".svg"
        ) from error


def _write_picture(content: bytes, file: Path) -> None:
    from trainer.contract.durable import write_durably

    file = file.resolve()
    if file.exists() and not file.is_file():  # a rename would replace a device by a file
        raise output.CommandRefused(f"{file} cannot be written: it is not a regular file")
    try:
        write_durably(file, content, mode=0o666)
    except OSError as error:
        raise output.CommandRefused(f"{file} cannot be written: {error.strerror}") from error
    output.note(f"wrote {file}")


def _print_result(answer: ExtendAnswer, warned: bool) -> None:
    run = answer.run
    if answer.plan is None:
        output.say(f"{run.name} already ends at step {run.end_step:,}: no change")
    else:
        output.say(f"{run.name} continues to step {answer.plan.end_step:,}; it is {run.state}")
    if not warned:
        output.warn(answer.warnings)


def _without_none(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def _lr(points: list[CurvePoint]) -> list[tuple[float, float]]:
    return [(float(p.step), p.lr_multiplier) for p in points]


def _pair(pair: tuple[float, float], unit: str) -> str:
    low, high = pair
    factor = (
        f" (× {units.significant(high / low, 3)})"
        if low > 0 and abs(high / low - 1) > 0.005
        else ""
    )
    return f"{units.significant(low)} -> {units.significant(high)} {unit}".rstrip() + factor


def _after_colon(sentence: str) -> str:
    return sentence.partition(": ")[2] or sentence
