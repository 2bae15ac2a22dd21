"""`traind power`, `traind tune-power`: power limit of a device, set or chosen by measurement."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from server.cli import options, output
from server.cli.scheduling import kept_policy
from trainer.contract import units
from trainer.contract.metrics import JOULES_PER_KWH
from trainer.contract.text import clean

if TYPE_CHECKING:
    from server.client import Client
    from server.schemas.progress import Progress

SETTLE_SECONDS = 20.0  # for clocks and temperature to settle at a new limit
POLL_SECONDS = 1.0
SLOWER_AT_MOST = 0.10
MIN_STEPS = 3
DEFAULT_SHARES = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)  # of the current limit


@dataclass(frozen=True)
class PowerMeasured:
    """Result at one power limit. watts: mean power draw.

    training_hours, training_kwh: for the remaining steps alone. The run's ETA also counts
    evaluations and saving, during which a limit matters little.
    """

    limit_watts: float
    tokens_per_second: float
    watts: float
    tokens_per_joule: float
    training_hours: float
    training_kwh: float


def register(app: typer.Typer) -> None:
    app.command(rich_help_panel="Queue")(power)
    app.command("tune-power", rich_help_panel="Queue")(tune_power)


def power(
    device: Annotated[str, typer.Argument(metavar="DEVICE", help="A GPU: cuda:0.")],
    limit: Annotated[
        float | None, typer.Option(help="Power limit while runs use the device, W.")
    ] = None,
    ceiling: Annotated[
        float | None, typer.Option(help="Temperature at which runs yield the device, °C.")
    ] = None,
    begin: Annotated[str | None, typer.Option("--from", metavar="HH:MM", help="Start.")] = None,
    end: Annotated[str | None, typer.Option("--to", metavar="HH:MM", help="End.")] = None,
    off: Annotated[bool, typer.Option("--off", help="Remove all limits and ceilings.")] = False,
    json: options.Json = False,
) -> None:
    """Set the power limit and temperature ceiling of a device. Without options, show them.

    With --from and --to the rule applies in these hours, and precedes the existing rules.
    """
    hours = {key: value for key, value in {"from": begin, "to": end}.items() if value is not None}
    if hours and limit is None and ceiling is None:
        output.usage("--from and --to need --limit or --ceiling")
    with output.connect() as traind:
        shown = traind.policy(device)
        rules: list[Any] = kept_policy(shown)["power"] or []
        if off or limit is not None or ceiling is not None:
            rule = {"power_limit_watts": limit, "ceiling_celsius": ceiling}
            rule["hours"] = [hours] if hours else None  # type: ignore[assignment]
            kept = [one for one in rules if one["hours"]] if not hours else rules
            change = {"power": None if off else [rule, *kept] if hours else [*kept, rule]}
            shown = traind.put_policy(device, {**kept_policy(shown), **change})
    if json:
        return output.emit(shown)
    for rule in shown.power or ():
        output.say(f"{clean(device)}: {_in_words(rule)}")
    if not shown.power:
        output.say(f"{clean(device)}: no power limit and no ceiling")
    output.warn(shown.problems)
    return None


def tune_power(
    run: options.RunArgument,
    caps: Annotated[
        str | None,
        typer.Option(metavar="120,150,…", help="Limits to measure, W [50 to 100 %]."),
    ] = None,
    minutes: Annotated[
        float, typer.Option(min=0.05, max=60, help="Minutes to measure at each limit.")
    ] = 1.0,
    json: options.Json = False,
) -> None:
    """Measure a training run at several power limits: tokens per second and per joule, and the
    best.

    The device's policy is restored at the end.
    """
    with output.connect() as traind:
        device = _device_of(traind, run)
        before = traind.policy(device)
        try:
            found = [
                _measure(traind, run, device, before, watts, minutes * 60)
                for watts in _limits(traind, device, caps)
            ]
        finally:
            traind.put_policy(device, kept_policy(before))
    best = recommended(found)
    if json:
        shown = {"device": device, "measured": [asdict(one) for one in found]}
        return output.emit({**shown, "recommended_watts": best.limit_watts})
    rows = [
        (
            f"{one.limit_watts:g}", units.integer(one.tokens_per_second), units.integer(one.watts),
            f"{one.tokens_per_joule:.1f}", f"{one.training_hours:.1f}", f"{one.training_kwh:.2f}",
            "recommended" if one == best else "",
        )
        for one in found
    ]  # fmt: skip
    columns = (">LIMIT W", ">TOKENS/S", ">DRAWN W", ">TOKENS/J", ">TRAINING H", ">TRAINING KWH", "")
    output.table(columns, rows, "nothing was measured")
    output.note(f"keep it with: traind power {device} --limit {best.limit_watts:g}")
    return None


def recommended(found: list[PowerMeasured]) -> PowerMeasured:
    """The limit with the most tokens per joule, at most SLOWER_AT_MOST slower than the fastest."""
    fastest = max(one.tokens_per_second for one in found)
    quick = [one for one in found if one.tokens_per_second >= (1 - SLOWER_AT_MOST) * fastest]
    return max(quick, key=lambda one: one.tokens_per_joule)


def _measure(
    traind: Client, run: str, device: str, policy: Any, watts: float, seconds: float
) -> PowerMeasured:
    rule = {"power_limit_watts": watts, "ceiling_celsius": None, "hours": None}
    answer = traind.put_policy(device, {**kept_policy(policy), "power": [rule]})
    if answer.problems:
        output.warn(answer.problems)
        raise typer.Exit(output.FAILED)
    settle, measure = units.duration(SETTLE_SECONDS), units.duration(seconds)
    output.note(f"{watts:g} W: {settle} to settle, {measure} to measure")
    time.sleep(SETTLE_SECONDS)
    first = _training(traind, run)
    until, last = time.monotonic() + seconds, first
    while time.monotonic() < until or last.step - first.step < MIN_STEPS:
        time.sleep(POLL_SECONDS)
        last = _training(traind, run)
    return _between(watts, first, last)


def _between(watts: float, first: Progress, last: Progress) -> PowerMeasured:
    """The result between two reads of the step, token and energy counters."""
    tokens = last.tokens_seen - first.tokens_seen
    seconds = (last.training_seconds or 0.0) - (first.training_seconds or 0.0)
    joules = (last.energy_joules or 0.0) - (first.energy_joules or 0.0)
    if joules <= 0 or seconds <= 0:
        output.usage("the run reports no energy: its device has no power readings")
    left = max(0, last.end_step - last.step) * tokens / (last.step - first.step)
    return PowerMeasured(
        limit_watts=watts,
        tokens_per_second=tokens / seconds,
        watts=joules / seconds,
        tokens_per_joule=tokens / joules,
        training_hours=left / (tokens / seconds) / 3600,
        training_kwh=left / (tokens / joules) / JOULES_PER_KWH,
    )


def _training(traind: Client, run: str) -> Progress:
    now = traind.progress(run)
    if now.state != "running":
        output.usage(f"{clean(now.name)} is {now.state}: tune-power needs a run that is training")
    return now


def _device_of(traind: Client, run: str) -> str:
    name = _training(traind, run).name
    held = [place.device for place in traind.queue().places if place.run == name]
    if len(held) != 1 or not held[0].startswith("cuda:"):
        output.usage(f"{clean(name)} does not train on one GPU: {', '.join(held) or 'no device'}")
    return held[0]


def _limits(traind: Client, device: str, caps: str | None) -> list[float]:
    if caps is not None:
        try:
            return [float(part) for part in caps.split(",")]
        except ValueError:
            output.usage(f"--caps {caps}: expected watts such as 120,150,180")
    place = next(one for one in traind.queue().places if one.device == device)
    if place.power_limit_watts is None:
        output.usage(f"{device} reports no power limit: give the limits with --caps")
    return [round(share * place.power_limit_watts) for share in DEFAULT_SHARES]


def _in_words(rule: Any) -> str:
    parts = [f"{rule.power_limit_watts:g} W"] if rule.power_limit_watts is not None else []
    parts += [f"runs yield at {rule.ceiling_celsius:g} °C"] if rule.ceiling_celsius else []
    when = "".join(f" from {one.begin} to {one.end}" for one in rule.hours or ())
    return (", ".join(parts) or "nothing") + when
