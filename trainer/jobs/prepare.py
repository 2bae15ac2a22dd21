"""Prepare job: corpus, tokenizer, token cache; writes data.json into the run directory."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from trainer.contract import events
from trainer.contract.orders import JobOrder
from trainer.contract.recipe import special_tokens_of
from trainer.contract.rundir import DataDir, RunDir
from trainer.contract.spec import RunSpec
from trainer.data import prepared as prepared_data
from trainer.data import skipped
from trainer.data.prepare import prepare
from trainer.data.prepared import PreparedData
from trainer.data.splits import LAST_VALIDATES
from trainer.runtime.process import Process

_STAGES = {"tokenizer": "tokenizing", "tokens": "tokenizing"}
LEFT_OUT = "data_left_out"
DATA_NOTE = "data_note"


def run(order: JobOrder, own: Process) -> dict[str, Any]:
    """params: {"spec": RunSpec, "tokens_needed": n, "tokenizer_run_id": id of the run whose
    tokenizer is taken, if any}. Raises DataError for every corpus that cannot be used."""
    assert order.run_dir is not None
    spec = RunSpec.model_validate(order.params["spec"])
    run_dir = RunDir(Path(order.run_dir))
    run_dir.root.mkdir(parents=True, exist_ok=True)
    prepared = prepare(
        spec.data,
        data_dir=Path(order.data_dir),
        vocab_size=spec.model.vocab_size,
        tokens_needed=int(order.params["tokens_needed"]),
        sequence_len=spec.model.sequence_len,
        seed_tokenizer_dir=_other_tokenizer(order),
        special_tokens=special_tokens_of(spec.model),
        progress=lambda stage, fraction, words: own.reporter.emit(
            events.Stage(stage=_stage(stage, spec), fraction=fraction, detail=words)  # pyright: ignore[reportArgumentType] - one of Stage's words
        ),
        previous=_previous(run_dir, Path(order.data_dir)),
    )
    is_new = not run_dir.data.exists()
    prepared_data.store(run_dir.data, prepared, Path(order.data_dir))
    if is_new:
        _show(prepared, own)
    return {
        "corpus_tokens": prepared.corpus_tokens,
        "corpus_tokens_exact": prepared.corpus_tokens_exact,
        "vocab_size": prepared.vocab_size,
        "identity": prepared.identity(),
        "split_rule": prepared.split_rule,
        "notes": prepared.notes,
        "left_out": [entry.model_dump() for entry in prepared.left_out],
    }


def _stage(stage: str, spec: RunSpec) -> str:
    if stage == "corpus":
        return "downloading" if spec.data.source == "hf" else "preparing"
    return _STAGES[stage]


def _show(prepared: PreparedData, own: Process) -> None:
    """Report what the corpus skips and how it is split, as notices of the run."""
    for entry in prepared.left_out:
        own.reporter.emit(
            events.Notice(
                level="warning" if skipped.is_notable([entry]) else "info",
                code=LEFT_OUT,
                message=skipped.sentences([entry])[0],
                data=entry.model_dump(),
            )
        )
    notes = skipped.sentences(prepared.left_out)
    for note in prepared.notes:
        if note not in notes:
            own.reporter.emit(events.Notice(level="warning", code=DATA_NOTE, message=note))
    if prepared.split_rule != LAST_VALIDATES:
        own.reporter.emit(events.Notice(level="info", code=DATA_NOTE, message=prepared.split_rule))


def _other_tokenizer(order: JobOrder) -> Path | None:
    run_id = order.params.get("tokenizer_run_id")
    if not run_id:
        return None
    other = DataDir(Path(order.data_dir)).run(run_id).data
    return Path(prepared_data.read(other, Path(order.data_dir)).tokenizer_dir)


def _previous(run_dir: RunDir, data_dir: Path) -> PreparedData | None:
    with contextlib.suppress(FileNotFoundError):
        return prepared_data.read(run_dir.data, data_dir)
    return None
