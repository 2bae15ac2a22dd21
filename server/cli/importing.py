"""`traind import nanochat`: list the checkpoints below a folder, preview one, import it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from server.cli import options, output, waiting
from trainer.contract import units
from trainer.contract.evaluations import BY_KIND

if TYPE_CHECKING:
    from server.schemas.jobs import JobView
    from trainer.contract.jobs import FoundCheckpoints, ImportPreview

Folder = Annotated[
    Path, typer.Argument(metavar="DIR", help="nanochat's base directory, or one below it.")
]


def nanochat(
    directory: Folder,
    tag: Annotated[str | None, typer.Option(help="Model tag, e.g. d12.")] = None,
    step: Annotated[
        int | None, typer.Option(min=0, help="Step of the checkpoint; default: the newest.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the new run; without it, list.")] = None,
    experiment: Annotated[str | None, typer.Option(help="Experiment below experiments/.")] = None,
    stage: Annotated[str | None, typer.Option(help="Kind: base (default), chat, sft, …")] = None,
    corpus: Annotated[Path | None, typer.Option(help="Folder of the text or shards.")] = None,
    tokenizer: Annotated[Path | None, typer.Option(help="Folder with tokenizer.pkl.")] = None,
    weights_only: Annotated[
        bool, typer.Option("--weights-only", help="Import without the optimizer state.")
    ] = False,
    muon: Annotated[
        str | None, typer.Option(help="Recipe: 2026-03, 2026-03-bf16 or 2026-07.")
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="Precision: bf16, fp32, fp16, fp8 or auto.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the run and import nothing.")
    ] = False,
    no_wait: options.NoWait = False,
    json: options.Json = False,
) -> None:
    """Import a nanochat checkpoint as a finished run, which can be extended.

    Without --name the checkpoints below DIR are listed; with --dry-run one is read and described.
    """
    ask = _without_none(
        path=_absolute(directory), tag=tag, step=step, name=name, experiment=experiment,
        stage=stage, corpus=_absolute(corpus), tokenizer=_absolute(tokenizer), muon=muon,
        precision=precision, weights_only=weights_only or None, dry_run=dry_run or None,
    )  # fmt: skip
    with output.connect() as traind:
        job = traind.import_run({"format": "nanochat", **ask})
        ended = job if no_wait else waiting.for_job(traind, job)
    waiting.finish(ended, lambda job: _print_result(job, name), json)


def _print_result(job: JobView, name: str | None) -> None:
    from trainer.contract.jobs import ImportAnswer

    result = job.result or {}
    if "spec" in result:
        for line in result.get("history", {}).get("inexact", []):
            output.note(line, "yellow")
        for line in result.get("history", {}).get("unknown", []):
            output.note(f"unknown: {line}", "yellow")
        output.say(f"imported as {name}; train it further with: traind extend {name} --to STEP")
        return
    answer = ImportAnswer.model_validate(result)
    if answer.listing is not None:
        _list(answer.listing.found)
    if answer.preview is not None:
        _show(answer.preview)


def _list(found: list[FoundCheckpoints]) -> None:
    rows = [
        (
            one.experiment or units.DASH, one.tag, one.stage, _steps(one.steps),
            _steps(one.weights_only), one.dataset or units.DASH,
        )
        for one in found
    ]  # fmt: skip
    columns = ("EXPERIMENT", "TAG", "STAGE", "STEPS", "WEIGHTS ONLY", "DATA SET")
    output.table(columns, rows, "no checkpoints")
    output.say("import one with: --tag TAG --step STEP --name NAME; --dry-run shows it first")


def _steps(steps: list[int], most: int = 6) -> str:
    shown = ", ".join(f"{step:,}" for step in steps[-most:])
    return f"… {shown}" if len(steps) > most else shown or units.DASH


def _show(preview: ImportPreview) -> None:
    schedule = preview.spec.get("schedule", {})
    output.pairs(
        preview.checkpoint,
        [
            ("generation", preview.generation),
            ("recipe", f"{preview.recipe}, Muon of {preview.muon}"),
            ("precision", preview.precision),
            ("trained on", f"{preview.gpus} GPU{'s' * (preview.gpus > 1)}"),
            ("step", f"{preview.step:,} of {preview.horizon_steps:,}"),
            ("tokens seen", f"{preview.tokens:,}"),
            ("parameters", f"{preview.parameters:,}"),
            (BY_KIND["bpb"].label, units.fixed(preview.val_bpb, BY_KIND["bpb"].digits)),
            ("schedule", f"warm-up {schedule.get('warmup_steps')} steps, "
                         f"{schedule.get('warmdown_shape')} warmdown over "
                         f"{schedule.get('warmdown_ratio')} of the run"),
            ("corpus", preview.corpus or "none found: the built-in text"),
            ("tokenizer", preview.tokenizer),
            *(("exact", line) for line in preview.exact),
            *(("not exact", line) for line in preview.inexact),
            *(("unknown", line) for line in preview.unknown),
            *(("note", line) for line in preview.notes),
        ],
    )  # fmt: skip


def _absolute(path: Path | None) -> str | None:
    return str(path.expanduser().absolute()) if path is not None else None


def _without_none(**options: Any) -> dict[str, Any]:
    return {key: value for key, value in options.items() if value is not None}
