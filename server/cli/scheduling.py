"""`traind queue`, `priority`, `hours`: the queue, priorities, and hours of runs and devices."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from server.cli import options, output
from trainer.contract import units
from trainer.contract.text import clean

if TYPE_CHECKING:
    from server.schemas.policies import PlacePolicyAnswer
    from server.schemas.queue import QueuePlace
    from server.schemas.runs import RunDetail

Target = Annotated[
    str, typer.Argument(metavar="RUN|DEVICE", help="A run, or a device: cpu, cuda:0.")
]
DEVICES = ("cpu", "mps", "cuda:")


def register(app: typer.Typer) -> None:
    for command in (queue, priority, hours):
        app.command(rich_help_panel="Queue")(command)


def queue(json: options.Json = False) -> None:
    """Show the queue: the run on each device, and the waiting runs with the reason of each wait."""
    with output.connect() as traind:
        found = traind.queue()
    if json:
        return output.emit(found)
    output.table(
        ("DEVICE", "NAME", "USED BY", "OPEN"),
        [(p.device, clean(p.name), _user(p), _opening(p)) for p in found.places],
        "no devices",
    )
    rows = [
        (
            entry.position, entry.name, entry.priority, ", ".join(entry.devices),
            units.when(entry.until), clean(entry.reason_message),
        )
        for entry in found.waiting
    ]  # fmt: skip
    output.warn(why for place in found.places for why in place.problems)
    columns = (">#", "RUN", ">PRIORITY", "FOR", "UNTIL", "WHY")
    output.table(columns, rows, "no runs are waiting")
    if found.num_waiting > len(found.waiting):
        output.note(
            f"{found.num_waiting - len(found.waiting):,} more runs are waiting behind these"
        )
    return None


def priority(
    run: options.RunArgument,
    value: Annotated[
        int,
        typer.Argument(
            min=-100,
            max=100,
            metavar="PRIORITY",
            help="Priority; higher runs go first; the default is 0.",
        ),
    ],
    json: options.Json = False,
) -> None:
    """Set the priority of a run. Runs of lower priority yield to it, and resume later."""
    _patched(run, {"priority": value}, json)


def hours(
    target: Target,
    begin: Annotated[str | None, typer.Option("--from", metavar="HH:MM", help="Start.")] = None,
    end: Annotated[str | None, typer.Option("--to", metavar="HH:MM", help="End.")] = None,
    days: Annotated[
        str | None, typer.Option(help="Days on which the hours begin, like mon,tue [every day].")
    ] = None,
    zone: Annotated[
        str | None, typer.Option(help="Time zone, like Europe/Berlin [the machine's].")
    ] = None,
    price_below: Annotated[
        float | None, typer.Option(help="Price of a kWh below which training is allowed.")
    ] = None,
    add: Annotated[bool, typer.Option("--add", help="Add to the existing hours.")] = False,
    always: Annotated[
        bool, typer.Option("--always", help="Remove all hours: always allowed.")
    ] = False,
    json: options.Json = False,
) -> None:
    """Set the hours in which a run, or any run on a device, may train. Without options, show
    them."""
    rule = {
        "from": begin, "to": end, "zone": zone, "price_below": price_below,
        "days": days.split(",") if days else None,
    }  # fmt: skip
    rule = {key: value for key, value in rule.items() if value is not None}
    if always and rule:
        output.usage("--always cannot be combined with other options", "traind hours RUN --always")
    is_device = target.startswith(DEVICES)
    with output.connect() as traind:
        policy = traind.policy(target) if is_device else None
        run = None if is_device else traind.run(target)
        before = policy.hours if policy else run.spec.hours if run else None
        shown: Any = policy or run
        if always or rule:
            kept = [one.model_dump(mode="json") for one in before or []] if add else []
            change = {"hours": None if always else [*kept, rule]}
            if policy is not None:
                shown = traind.put_policy(target, {**kept_policy(policy), **change})
            else:
                shown = traind.patch_run(target, change)
    if json:
        return output.emit(shown)
    rules = shown.hours if is_device else shown.spec.hours
    output.note(f"{clean(target)}: {_in_words(rules)}")
    return None


def _patched(name: str, change: dict[str, Any], json: bool) -> None:
    with output.connect() as traind:
        run: RunDetail = traind.patch_run(name, change)
    if json:
        return output.emit(run)
    output.note(f"{run.name}: priority {run.spec.priority}; {run.state}, {run.reason_message}")
    return None


def kept_policy(policy: PlacePolicyAnswer) -> dict[str, Any]:
    """The body that restores a policy."""
    return policy.model_dump(mode="json", exclude={"problems"})


def _user(place: QueuePlace) -> str:
    return clean(place.run or place.job or place.neighbour or units.DASH)


def _opening(place: QueuePlace) -> str:
    if not place.is_open:
        return f"from {units.when(place.opens_at)}" if place.opens_at else "never"
    return f"until {units.when(place.closes_at)}" if place.closes_at else "always"


def _in_words(rules: Any) -> str:
    if rules is None:
        return "always"
    if not rules:
        return "never"
    return "; ".join(_rule_in_words(rule) for rule in rules)


def _rule_in_words(rule: Any) -> str:
    days = "every day" if len(rule.days) == 7 else ", ".join(rule.days)
    when = "all day" if rule.begin == rule.end == "00:00" else f"{rule.begin} to {rule.end}"
    zone = f" ({rule.zone})" if rule.zone else ""
    price = f" below {rule.price_below:g} per kWh" if rule.price_below is not None else ""
    return f"{days} {when}{zone}{price}"
