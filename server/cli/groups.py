"""`traind group`: run one spec in many variations and compare the results."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from server.cli import options, output, specfile
from trainer.contract import units
from trainer.contract.metric_text import shown
from trainer.contract.text import clean

if TYPE_CHECKING:
    from server.schemas.groups import GroupCell, GroupDetail, GroupMemberView, LadderFit

GroupArgument = Annotated[str, typer.Argument(metavar="GROUP", help="Name or id of a group.")]
BUDGET_KEYS = ("minutes", "tokens", "kwh")


def register(app: typer.Typer) -> None:
    group = typer.Typer(
        help="Run one spec in many variations, and compare the results.", no_args_is_help=True
    )
    group.command("list")(list_)
    for command in (create, show, cancel, delete):
        group.command()(command)
    app.add_typer(group, name="group", rich_help_panel="Queue")


def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the group.")],
    spec: Annotated[
        str | None,
        typer.Option("--spec", metavar="SPEC", help="YAML or JSON file of the base spec, or -."),
    ] = None,
    preset: options.Preset = None,
    settings: options.SpecKeys = None,
    depths: Annotated[
        str | None, typer.Option(metavar="4,6,8", help="Depths of the ladder, ascending.")
    ] = None,
    grid: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY.PATH=A,B",
            help="Values of one key of the spec; repeatable (all combinations).",
        ),
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, max=64, help="Number of seeds per variant.")] = 1,
    budget: Annotated[
        list[str] | None,
        typer.Option(
            metavar="minutes=30", help="Budget per run: minutes, tokens or kwh; repeatable."
        ),
    ] = None,
    json: options.Json = False,
) -> None:
    """Create a group: a run for each depth, point of the grid and seed, queued at low priority."""
    body: dict[str, Any] = {
        "name": name,
        "base": specfile.read_spec(spec, settings or [], preset=preset),
        "repeats": repeats,
        "grid": dict(_values(one) for one in grid or ()),
    }
    if depths is not None:
        body["depths"] = [_whole(part) for part in depths.split(",")]
    if budget:
        body["budget"] = dict(_limit(one) for one in budget)
    with output.connect() as traind:
        made = traind.create_group(body)
    if json:
        return output.emit(made)
    output.say(f"{made.name} ({made.id}) has {made.num_members} runs, queued at low priority")
    output.note(f"compare them with: traind group show {made.name}")
    return None


def list_(json: options.Json = False) -> None:
    """List groups, newest first."""
    with output.connect() as traind:
        page = traind.list_groups(limit=100)
    if json:
        return output.emit(page)
    rows = [
        (
            one.name, one.num_members, _counts(one.counts), shown("val_bpb", one.best_val_bpb),
            units.duration(one.training_seconds),
        )
        for one in page.data
    ]  # fmt: skip
    return output.table(("GROUP", ">RUNS", "STATES", ">BEST BPB", ">TRAINED"), rows, "no groups")


def show(
    group: GroupArgument,
    baseline: Annotated[
        str | None, typer.Option(metavar="GROUP", help="Group to compare with.")
    ] = None,
    next_depth: Annotated[
        int | None, typer.Option(min=1, max=128, help="Depth to predict from the fit.")
    ] = None,
    json: options.Json = False,
) -> None:
    """Show a group: members, noise between seeds, gains, compute multipliers, fit of a ladder."""
    with output.connect() as traind:
        found = traind.group(group, baseline=baseline, next_depth=next_depth)
    if json:
        return output.emit(found)
    _show_members(found)
    if any(cell.num_members > 1 or cell.gain is not None for cell in found.cells):
        _show_cells(found)
    output.say(f"noise between seeds: {found.noise.note}")
    for fit in found.fits:
        _show_fit(fit)
    for note in found.notes:
        output.note(note)
    return None


def cancel(group: GroupArgument, yes: options.Yes = False, json: options.Json = False) -> None:
    """Cancel every run of a group that has not ended."""
    if not options.confirmed(f"Cancel the runs of {clean(group)}?", yes):
        raise typer.Exit(output.FAILED)
    with output.connect() as traind:
        after = traind.cancel_group(group)
    if json:
        return output.emit(after)
    return output.say(f"{after.name}: {_counts(after.counts)}")


def delete(
    group: GroupArgument,
    runs: Annotated[
        bool,
        typer.Option("--runs", help="Also delete its runs, with their checkpoints and history."),
    ] = False,
    yes: options.Yes = False,
    json: options.Json = False,
) -> None:
    """Delete a group. Its runs are kept unless --runs is given."""
    with output.connect() as traind:
        found = traind.group(group)
        what = f" and its {found.num_members} runs with their checkpoints" if runs else ""
        if not options.confirmed(f"Delete group {clean(found.name)}{what} permanently?", yes):
            raise typer.Exit(output.FAILED)
        traind.delete_group(found.id, runs=runs)
    output.deleted(found.name, json)


# --- options -------------------------------------------------------------------------------------


def _values(text: str) -> tuple[str, list[Any]]:
    """Parse 'optimizer.matrix_lr=0.01,0.02' into a field and its values."""
    from server.cli import spec_text

    path, equals, values = text.partition("=")
    if not equals or not path or not values:
        output.usage(f"--grid {text}: expected key.path=value,value")
    try:
        found = spec_text.read(f"[{values}]")
    except spec_text.Unreadable as error:
        output.usage(f"--grid {path}: {error}")
    return path, found


def _limit(text: str) -> tuple[str, float]:
    key, _, value = text.partition("=")
    try:
        number = float(value.replace("_", ""))
    except ValueError:
        number = -1.0
    if key not in BUDGET_KEYS or number <= 0:
        output.usage(f"--budget {text}: expected minutes=30, tokens=1e9 or kwh=0.5")
    return key, int(number) if key == "tokens" else number


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        output.usage(f"--depths: {text!r} is not a whole number", "--depths 4,6,8")


# --- tables --------------------------------------------------------------------------------------


def _show_members(found: GroupDetail) -> None:
    rows = [
        (
            clean(one.name), str(one.state), units.progress(one.fraction),
            shown("loss_smooth", one.loss_smooth), shown("val_bpb", one.val_bpb),
             units.significant(one.flops, 3),
            units.duration(one.training_seconds), _energy(one), _multiplier(one.compute_multiplier),
        )
        for one in found.members
    ]  # fmt: skip
    columns = (
        "RUN", "STATE", ">DONE", ">LOSS", ">VAL BPB", ">FLOPS", ">TRAINED", ">ENERGY", ">COMPUTE",
    )  # fmt: skip
    output.table(columns, rows, "no runs")


def _show_cells(found: GroupDetail) -> None:
    rows = [
        (
            units.DASH if cell.depth is None else cell.depth, _variant(cell.variant),
            f"{cell.num_finished}/{cell.num_members}", shown("val_bpb", cell.val_bpb_mean),
            shown("val_bpb", cell.val_bpb_spread), _gain(cell),
            _multiplier(cell.compute_multiplier),
        )
        for cell in found.cells
    ]  # fmt: skip
    columns = (">DEPTH", "VARIANT", ">SEEDS", ">MEAN BPB", ">SPREAD", "GAIN", ">COMPUTE")
    output.table(columns, rows, "no cells")


def _show_fit(fit: LadderFit) -> None:
    name = f" of {_variant(fit.variant)}" if fit.variant else ""
    output.say(
        f"fit{name}: L = {fit.e:.4f} + {fit.a:.4f} (C / "
        f"{units.significant(fit.reference_flops, 3)})^-{fit.alpha:.3f}"
        f"; alpha {fit.alpha_interval[0]:.3f} to {fit.alpha_interval[1]:.3f} at "
        f"{units.percent(fit.confidence)}, residual {fit.residual_spread:.4f} bits per byte"
    )
    if fit.prediction is not None:
        seen = fit.prediction
        low, high = seen.val_bpb_interval
        time = units.duration(3600 * seen.hours) if seen.hours is not None else "time unknown"
        energy = f", {units.kwh(seen.kwh)}" if seen.kwh is not None else ""
        output.say(
            f"  depth {seen.depth}: val bpb {seen.val_bpb:.4f} ({low:.4f} to {high:.4f}), "
            f"{units.flops(seen.flops)}, {time}{energy} ({seen.time_source})"
        )
    for sentence in fit.not_told:
        output.say(f"  - {sentence}")


def _gain(cell: GroupCell) -> str:
    if cell.gain is None:
        return units.DASH
    width = f" ± {cell.gain_uncertainty:.4f}" if cell.gain_uncertainty is not None else ""
    verdict = {True: "real", False: "within noise", None: "noise unknown"}[cell.is_real]
    return f"{cell.gain:+.4f}{width} ({verdict})"


def _energy(one: GroupMemberView) -> str:
    return units.energy(one.energy_joules)


def _multiplier(value: float | None) -> str:
    return units.DASH if value is None else f"{value:.2f}x"


def _variant(variant: dict[str, Any]) -> str:
    return clean(", ".join(f"{path}={value}" for path, value in variant.items())) or units.DASH


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {state}" for state, count in counts.items()) or units.DASH
