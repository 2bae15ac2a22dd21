"""`traind ps`, `show`, `phases`, `attempts`, `events`, `logs`: runs and their history."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from server.cli import options, output, waiting
from trainer.contract import units
from trainer.contract.metric_text import heading, shown
from trainer.contract.metrics import BY_KEY
from trainer.contract.text import clean, clean_lines

if TYPE_CHECKING:
    from rich.text import Text

    from server.client import Client, LogPart
    from server.schemas.events import EventView
    from server.schemas.runs import RunDetail, RunSummary

FOLLOW_SECONDS = 0.5
LEVELS = {"warning": "yellow", "error": "red"}
Follow = Annotated[bool, typer.Option("--follow", "-f", help="Keep printing new output.")]


def register(app: typer.Typer) -> None:
    for command in (ps, show, phases, attempts, events, logs):
        app.command(rich_help_panel="Look")(command)


def ps(
    state: Annotated[str | None, typer.Option(help="List only runs in this state.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Maximum number of results.")] = 50,
    json: options.Json = False,
) -> None:
    """List runs, newest first."""
    with output.connect() as traind:
        page = traind.list_runs(state=state, limit=min(limit, 100))
        runs = page.data
        while page.has_more and page.next and len(runs) < limit:
            page = traind.list_runs(state=state, limit=100, after=page.next)
            runs += page.data
    runs = runs[:limit]
    if json:
        return output.emit(runs)
    rows = [
        (
            run.name, output.state(run.state, run.condition), run.device,
            f"{units.integer(run.step)} / {units.integer(run.end_step)}",
            units.progress(run.fraction),
            shown("loss", run.loss if run.loss_smooth is None else run.loss_smooth),
            shown("tokens_per_second", None if run.condition else run.tokens_per_second),
            units.duration(None if run.condition else run.eta_seconds),
            _waiting(run),
        )
        for run in runs
    ]  # fmt: skip
    columns = (
        "NAME", "STATE", "DEVICE", ">STEP", ">DONE", heading("loss"), heading("tokens_per_second"),
        ">ETA", "WHY",
    )  # fmt: skip
    output.table(columns, rows, "no runs; create one with: traind run --name demo --preset demo")
    return None


def show(run: options.RunArgument, json: options.Json = False) -> None:
    """Show a run: state, progress, model, plan and settings."""
    with output.connect() as traind:
        found = traind.run(run)
    if json:
        return output.emit(found)
    spec, plan = found.spec, found.plan
    shape, batch = plan.shape, plan.batch
    output.pairs(found.name, _details(found))
    output.pairs(
        "Model and batch",
        [
            ("shape", f"depth {shape.n_layer}, width {shape.n_embd}, {shape.n_head} heads, "
                      f"context {shape.sequence_len:,}, vocabulary {shape.vocab_size:,}"),
            ("parameters", f"{plan.parameters.total:,}"),
            ("batch", f"{batch.tokens:,} tokens = {batch.device_batch_size} x "
                      f"{batch.sequence_len:,} x {batch.accumulation}"),
            ("data", clean(f"{spec.data.source} {spec.data.name or spec.data.path or ''}")),
            ("preset", spec.preset),
            ("frozen", ", ".join(f"{k}={v}" for k, v in found.frozen.items()) or units.DASH),
            ("overrides", ", ".join(f"{k}={v}" for k, v in found.overrides.items()) or units.DASH),
            ("directory", found.directory),
        ],
    )  # fmt: skip
    if found.pending_extend:
        output.note("an extend is waiting for the end of the current phase")
    return None


def phases(run: options.RunArgument, json: options.Json = False) -> None:
    """List the phases of a run and the learning rate at each joint."""
    with output.connect() as traind:
        found = traind.phases(run)
    if json:
        return output.emit(found)
    rows = [
        (
            phase.index, phase.name, phase.mode, units.integer(phase.start_step),
            units.integer(phase.end_step), units.integer(phase.ended_at_step),
            units.count(phase.tokens), _joint(phase.joint), units.when(phase.started_at),
            units.when(phase.ended_at),
        )
        for phase in found
    ]  # fmt: skip
    columns = (
        ">#", "NAME", "MODE", ">FROM", ">TO", ">ENDED AT", ">TOKENS", "LR AT THE JOINT",
        "STARTED", "ENDED",
    )  # fmt: skip
    output.table(columns, rows, "no phases")
    return None


def attempts(run: options.RunArgument, json: options.Json = False) -> None:
    """List the attempts (trainer processes) of a run and how each ended."""
    with output.connect() as traind:
        found = traind.attempts(run)
    if json:
        return output.emit(found)
    rows = [
        (
            attempt.number, attempt.phase_index, attempt.device, units.integer(attempt.start_step),
            units.integer(attempt.last_step), units.integer(attempt.steps_lost),
            attempt.outcome or attempt.stage,
            units.DASH if attempt.exit_code is None else attempt.exit_code,
            units.when(attempt.started_at),
            units.when(attempt.ended_at), attempt.exact_resume or units.DASH, attempt.message,
        )
        for attempt in found
    ]  # fmt: skip
    columns = (
        ">#", ">PHASE", "DEVICE", ">FROM", ">LAST", ">LOST", "OUTCOME", ">EXIT", "STARTED",
        "ENDED", "RESUME", "MESSAGE",
    )  # fmt: skip
    output.table(columns, rows, "no attempts yet")
    return None


def events(
    run: Annotated[
        str | None,
        typer.Argument(
            metavar="[RUN]", help="List only events of this run.", autocompletion=options.run_names
        ),
    ] = None,
    tail: Annotated[int, typer.Option(min=1, max=1000, help="Number of most recent events.")] = 100,
    follow: Follow = False,
    json: options.Json = False,
) -> None:
    """List events of one run or of all runs. --json --follow prints one per line."""
    from server.schemas.events import EventView

    with output.connect() as traind:
        past = traind.events(run, limit=tail, newest=True).data
        if json and not follow:
            return output.emit(past)
        for event in past:
            _print_event(event, run is None, json)
        if follow:
            after = past[-1].id if past else 0
            for message in traind.stream(run, after=after, on_connection=_connection_note()):
                if message.id is not None:
                    _print_event(EventView.model_validate(message.data), run is None, json)
    return None


def logs(
    run: options.RunArgument,
    follow: Follow = False,
    attempt: Annotated[
        int | None, typer.Option(min=0, help="Attempt number; default: the newest.")
    ] = None,
    tail: Annotated[
        int, typer.Option(min=1, max=10_000, help="Number of lines, counted from the end.")
    ] = 200,
) -> None:
    """Print the trainer's log. --follow continues across attempts until the run settles."""
    with output.connect() as traind:
        if not follow:
            return _print_log(traind.logs(run, attempt=attempt, tail=tail).text)
        waiting.for_run(
            traind, run, lambda now: bool(now.attempt) or now.state in waiting.SETTLED_STATES
        )
        part = traind.logs(run, attempt=attempt, tail=tail)
        while True:
            _print_log(part.text)
            progress = waiting.retrying(lambda: traind.progress(run))
            settled = progress.state in waiting.SETTLED_STATES
            part = _next_part(traind, run, part, attempt)
            if settled and not part.text:
                return None
            if not part.text:
                time.sleep(FOLLOW_SECONDS)


def event_line(event: EventView, with_run: bool = False) -> Text:
    """'14:02:11  demo  checkpoint  saved step 50' in the colour of its level."""
    parts = [units.when(event.unix_seconds)]
    parts += [clean(event.run or event.job or "daemon")] if with_run else []
    step = f"step {event.step:,}: " if event.step is not None else ""
    line = output.styled("  ".join(parts) + "  ", "dim")
    return line.append(
        step + clean(event.message or event.kind), LEVELS.get(event.level, "default")
    )


def _standing(run: RunDetail) -> str:
    """The state as a sentence: 'Paused by you on the command line at 16:39:08.'"""
    if run.state not in ("paused", "cancelled") or run.state_since is None:
        return run.reason_message
    return f"{run.reason_message.rstrip('.')} at {units.when(run.state_since)}."


def _details(run: RunDetail) -> list[tuple[str, object]]:
    is_pending = run.ended_at is None and run.desired_state != run.state
    wanted = f" (requested: {run.desired_state})" if is_pending else ""
    rows: list[tuple[str, object]] = [
        ("id", run.id),
        ("title", clean(run.title or units.DASH)),
        ("state", output.state(run.state, run.condition).append(wanted, style="dim")),
        ("why", _standing(run)),
    ]
    if run.condition:
        rows.append(("now", run.condition.message))
    if run.advice:
        rows.append(("do", run.advice))
    rows += [
        ("step", f"{run.step:,} of {run.end_step:,} ({units.progress(run.fraction)})"),
        ("tokens", f"{run.tokens_seen:,}"),
        *_metrics(run),
        ("ETA", units.duration(run.eta_seconds)),
        ("training time", units.duration(run.training_seconds)),
        ("device", run.device),
        ("exact resume", run.exact_resume or units.DASH),
        ("created", units.when(run.created_at)),
    ]
    rows += [(f"metadata.{key}", clean(value)) for key, value in run.metadata.items()]
    return rows


def _metrics(run: RunDetail) -> Iterator[tuple[str, object]]:
    """Each metric that has a value now, in the order of the registry, then those of a newer one."""
    for key in dict.fromkeys([*BY_KEY, *run.metrics]):
        value = run.metrics.get(key, getattr(run, key, None))
        if value is not None:
            yield BY_KEY[key].name if key in BY_KEY else key, shown(key, value)


_NAMED_WAITS = ("outside_hours", "device_wanted", "device_hot", "preempted")


def _waiting(run: RunSummary) -> str:
    if run.condition:
        return run.condition.message
    if run.state == "queued" and run.reason in _NAMED_WAITS:
        return run.reason_message
    if run.state == "queued" and run.queue_position is not None:
        return f"number {run.queue_position} in the queue"
    if run.state == "completed":
        return f"took {units.duration(run.training_seconds)}"
    return "" if run.state == "running" else run.reason_message


def _joint(joint: object) -> str:
    pair = getattr(joint, "lr_multiplier", None)
    return f"{units.significant(pair[0])} -> {units.significant(pair[1])}" if pair else units.DASH


def _print_event(event: EventView, with_run: bool, json: bool) -> None:
    if json:
        output.emit_line(event)
    else:
        output.stdout().print(event_line(event, with_run), soft_wrap=True)


def _next_part(traind: Client, run: str, part: LogPart, attempt: int | None) -> LogPart:
    """The log after `part`: more of its attempt, else the next attempt from its beginning."""
    more = waiting.retrying(lambda: traind.logs(run, attempt=part.attempt, offset=part.next_offset))
    if more.text or attempt is not None:
        return more
    newest = waiting.retrying(lambda: traind.logs(run, tail=1)).attempt
    if newest == part.attempt:
        return more
    output.note(f"attempt {part.attempt + 1}")
    return waiting.retrying(lambda: traind.logs(run, attempt=part.attempt + 1, offset=0))


def _print_log(text: str) -> None:
    sys.stdout.write(clean_lines(text) + ("" if text.endswith("\n") or not text else "\n"))
    sys.stdout.flush()


def _connection_note() -> Callable[[bool], None]:
    """Prints once that the daemon does not answer, and once that it answers again."""
    was = [True]

    def report(connected: bool) -> None:
        if connected != was[0]:
            output.note(
                "connected again" if connected else "the daemon does not answer; waiting for it"
            )
            was[0] = connected

    return report
