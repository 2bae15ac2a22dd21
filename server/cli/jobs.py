"""`traind export`, `sample`, `eval`, `audit`, `fetch`, `jobs`, `job`. The first four wait for the
result unless `--no-wait` is given.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from server.cli import importing, options, output, tokens, waiting
from trainer.contract import units
from trainer.contract.evaluations import BY_KIND

if TYPE_CHECKING:
    from server.client import Client
    from server.schemas.jobs import JobView

# Options of a command that hands all of them to another program.
_PASS_ON = {"ignore_unknown_options": True, "allow_extra_args": True}

CheckpointName = Annotated[str | None, typer.Option("--checkpoint", help="Name of the checkpoint.")]


def register(app: typer.Typer) -> None:
    for command in (sample, eval_, export, audit, jobs, job):
        app.command(command.__name__.rstrip("_"), rich_help_panel="Results")(command)
    imports = typer.Typer(help="Import a run that was trained elsewhere.", no_args_is_help=True)
    imports.command("nanochat")(importing.nanochat)
    imports.callback()(lambda: None)  # keeps `nanochat` a subcommand, though it is the only one
    app.add_typer(imports, name="import", rich_help_panel="Runs")
    fetches = typer.Typer(help="Download data that evaluations need.", no_args_is_help=True)
    fetches.command("core", add_help_option=False, context_settings=_PASS_ON)(fetch_core)
    fetches.callback()(lambda: None)
    app.add_typer(fetches, name="fetch", rich_help_panel="Daemon")


def export(
    run: options.RunArgument,
    format_: Annotated[
        str,
        typer.Option("--format", help="Format: nanochat, nanochat-v1, nanochat-v2 or huggingface."),
    ] = "nanochat",
    step: options.StepOption = None,
    checkpoint: CheckpointName = None,
    no_wait: options.NoWait = False,
    json: options.Json = False,
) -> None:
    """Write a checkpoint in nanochat's or Hugging Face's layout.

    nanochat means the version that fits the run's recipe; nanochat-v1 and nanochat-v2 choose one.
    """

    def show(job: JobView) -> None:
        result = job.result or {}
        output.say(str(result.get("path", "done")))
        for file in result.get("files", []):
            output.say(f"  {file}")
        for note in result.get("notes", []):
            output.note(str(note), "yellow")

    ask = _without_none(format=format_, step=step, checkpoint=checkpoint)
    _do(lambda traind: traind.export(run, ask), show, no_wait, json)


def audit(
    run: options.RunArgument,
    step: options.StepOption = None,
    checkpoint: CheckpointName = None,
    steps: Annotated[
        int | None, typer.Option(min=1, max=1000, help="Number of steps to repeat.")
    ] = None,
    no_wait: options.NoWait = False,
    json: options.Json = False,
) -> None:
    """Audit a run: repeat recorded steps and compare losses bit for bit. Exit status 1 if they
    differ."""
    from trainer.contract.jobs import AuditResult

    ask = _without_none(step=step, checkpoint=checkpoint, steps=steps)
    with output.connect() as traind:
        ended = _wait_unless(traind, traind.audit(run, ask), no_wait)
    found = AuditResult.model_validate(ended.result) if ended.result else None
    waiting.finish(ended, lambda job: output.say(found.sentence if found else "done"), json)
    if found is not None and found.verdict == "mismatch":
        raise typer.Exit(output.FAILED)


def sample(
    run: options.RunArgument,
    prompt: Annotated[list[str], typer.Option(help="Text to continue; repeatable.")],
    step: options.StepOption = None,
    checkpoint: CheckpointName = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, max=4096)] = None,
    temperature: Annotated[
        float | None, typer.Option(min=0, help="Sampling temperature; 0 is greedy.")
    ] = None,
    top_k: Annotated[int | None, typer.Option(min=1)] = None,
    seed: Annotated[int | None, typer.Option(min=0)] = None,
    where: options.WhereOption = None,
    no_wait: options.NoWait = False,
    json: options.Json = False,
) -> None:
    """Sample text from a checkpoint, printed as it is generated."""

    ask = _without_none(
        prompts=prompt, step=step, checkpoint=checkpoint, max_tokens=max_tokens,
        temperature=temperature, top_k=top_k, seed=seed, where=where,
    )  # fmt: skip
    telling = tokens.TokenPrinter(prompt)
    with output.connect() as traind:
        asked = traind.sample(run, ask)
        if not (json or no_wait):
            telling.listen(traind, asked)
        ended = _wait_unless(traind, asked, no_wait)
    waiting.finish(ended, lambda job: telling.rest((job.result or {}).get("samples", [])), json)


def eval_(
    run: options.RunArgument,
    step: options.StepOption = None,
    checkpoint: CheckpointName = None,
    bpb: Annotated[bool, typer.Option("--bpb", help=BY_KIND["bpb"].title)] = False,
    core: Annotated[bool, typer.Option("--core", help=BY_KIND["core"].title)] = False,
    max_per_task: Annotated[
        int | None, typer.Option(min=1, help="CORE: maximum number of items per task.")
    ] = None,
    bundle: Annotated[Path | None, typer.Option(help="CORE: directory of the bundle.")] = None,
    eval_tokens: Annotated[
        int | None, typer.Option(min=1, help="bpb: number of tokens to evaluate.")
    ] = None,
    where: options.WhereOption = None,
    no_wait: options.NoWait = False,
    json: options.Json = False,
) -> None:
    """Evaluate a checkpoint: --bpb (the default), --core, or both."""
    ask = _without_none(
        step=step, checkpoint=checkpoint, bpb=bpb or not core, core=core,
        core_max_per_task=max_per_task, eval_tokens=eval_tokens, where=where,
        core_bundle=str(bundle.expanduser().absolute()) if bundle else None,
    )  # fmt: skip
    with output.connect() as traind:
        ended = _wait_unless(traind, traind.evaluate(run, ask), no_wait)
        if json or ended.state != "completed":
            return waiting.finish(ended, lambda job: None, json)
        for found in (e for e in traind.evaluations(run) if e.job == ended.id):
            of = BY_KIND[found.kind]
            output.say(f"{of.label} {of.text(found.value)} at step {found.step:,}")
            for line in _core_lines(found.result):
                output.say(f"  {line}")
    return None


def jobs(
    run: Annotated[str | None, typer.Option(help="List only jobs of this run.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Maximum number of results.")] = 50,
    json: options.Json = False,
) -> None:
    """List jobs (work that is not training), newest first."""
    with output.connect() as traind:
        found = traind.jobs(run=run, limit=limit).data
    if json:
        return output.emit(found)
    rows = [
        (
            job.id, job.kind, job.run or units.DASH, output.state(job.state), job.where,
            job.stage if job.state == "running" else "", units.percent(job.fraction),
            units.when(job.created_at), job.message,
        )
        for job in found
    ]  # fmt: skip
    columns = ("ID", "KIND", "RUN", "STATE", "WHERE", "STAGE", ">DONE", "ASKED", "MESSAGE")
    output.table(columns, rows, "no jobs")
    return None


def job(
    job: Annotated[str, typer.Argument(metavar="JOB", help="Id of a job.")],
    wait: Annotated[bool, typer.Option("--wait", help="Wait until the job has ended.")] = False,
    cancel: Annotated[bool, typer.Option("--cancel", help="Cancel the job.")] = False,
    log: Annotated[bool, typer.Option("--log", help="Print the last lines of its log.")] = False,
    json: options.Json = False,
) -> None:
    """Show a job, or wait for it or cancel it. Exit status 1 if it failed."""
    with output.connect() as traind:
        if log:
            return output.say(traind.job_log(job).rstrip())
        if cancel:
            traind.cancel_job(job)
        found = traind.job(job)
        if wait:
            found = waiting.for_job(traind, found)
    if json:
        output.emit(found)
    else:
        output.pairs(
            f"{found.kind} {found.id}",
            [
                ("state", output.state(found.state)), ("run", found.run or units.DASH),
                ("doing", waiting.describe(found)), ("message", found.message),
                ("asked", units.when(found.created_at)),
                ("ended", units.when(found.ended_at)), ("result", found.result or units.DASH),
            ],
        )  # fmt: skip
    if found.state == "failed":
        raise typer.Exit(output.FAILED)
    return None


def fetch_core(context: typer.Context) -> None:
    """Download the CORE evaluation bundle and verify its checksum."""
    import os

    from server.cli.offline import interpreter

    python = interpreter.trainer_python()
    command = [python, "-P", "-m", "trainer.evaluate.fetch", *context.args]
    os.execvpe(python, command, interpreter.environment())


def _do(
    ask: Callable[[Client], JobView], show: Callable[[JobView], None], no_wait: bool, json: bool
) -> None:
    with output.connect() as traind:
        ended = _wait_unless(traind, ask(traind), no_wait)
    waiting.finish(ended, show, json)


def _wait_unless(traind: Client, job: JobView, no_wait: bool) -> JobView:
    return job if no_wait else waiting.for_job(traind, job)


def _core_lines(result: dict[str, Any]) -> list[str]:
    """CORE's tasks: 'piqa: accuracy 0.6110, centred 0.2220, 3 items not scored'."""
    lines = []
    for task, accuracy in (result.get("results") or {}).items():
        centred = (result.get("centered_results") or {}).get(task)
        lost = (result.get("not_scored") or {}).get(task, {}).get("count", 0)
        line = f"{task}: accuracy {units.fixed(accuracy, 4)}, centred {units.fixed(centred, 4)}"
        lines.append(line + (f", {lost:,} items not scored" if lost else ""))
    return lines


def _without_none(**values: Any) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}
