"""Import job: verifies a nanochat checkpoint and writes it as a run.

The job builds everything in its own directory under `import/`; the server moves it into place when
it creates the rows, so that a partial import is never visible.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

from trainer.checkpoint import store
from trainer.checkpoint.store import FileEntry, Manifest, Snapshot
from trainer.contract import events
from trainer.contract.jobs import ImportAnswer, ImportedCheckpoint, ImportParams, ImportResult
from trainer.contract.orders import JobOrder
from trainer.contract.recipe import rules_of
from trainer.contract.rundir import RunDir
from trainer.data import prepared as prepared_data
from trainer.data.cursor import first_cursor
from trainer.data.prepare import prepare
from trainer.data.prepared import PreparedData
from trainer.evaluate import span
from trainer.interop import nanochat_import, nanochat_place
from trainer.interop.nanochat_import import Candidate
from trainer.interop.nanochat_place import DataPosition
from trainer.runtime.process import Process
from trainer.train.state import TrainState, rng_state

STAGING = "import"
_DTYPES = {"bf16": "bfloat16", "fp8": "bfloat16", "fp32": "float32", "fp16": "float16"}


def run(order: JobOrder, own: Process) -> dict[str, Any]:
    """params: jobs.ImportParams. Result: jobs.ImportResult, or jobs.ImportAnswer if no run was
    requested. Raises InteropError, DataError."""
    params = ImportParams.model_validate(order.params)
    own.reporter.emit(events.Stage(stage="verifying", detail="checkpoint files"))
    if params.name is None and not params.dry_run:
        found = nanochat_import.listing(Path(params.path).expanduser())
        return ImportAnswer(listing=found).model_dump(mode="json")
    candidate = nanochat_import.consider(params)
    if params.dry_run:
        shown = nanochat_import.preview(candidate)
        return ImportAnswer(preview=shown).model_dump(mode="json")
    staging = RunDir(own.directory / STAGING)
    shutil.rmtree(staging.root, ignore_errors=True)
    staging.checkpoints.mkdir(parents=True)
    try:
        return _lay_out(order, own, candidate, staging, params)
    except BaseException:
        shutil.rmtree(staging.root, ignore_errors=True)
        raise


def _lay_out(
    order: JobOrder, own: Process, candidate: Candidate, staging: RunDir, params: ImportParams
) -> dict[str, Any]:
    own.reporter.emit(events.Stage(stage="tokenizing", detail="tokenizer and corpus"))
    data = prepare(
        candidate.spec.data,
        data_dir=Path(order.data_dir),
        vocab_size=candidate.spec.model.vocab_size,
        tokens_needed=0,
        sequence_len=candidate.spec.model.sequence_len,
        seed_tokenizer_dir=candidate.tokenizer,
        progress=lambda stage, fraction, words: own.reporter.emit(
            events.Stage(stage="tokenizing", fraction=fraction, detail=words)
        ),
    )
    prepared_data.store(staging.data, data, Path(order.data_dir))
    place = _place(candidate, data, params)
    candidate.findings.inexact.extend(place.doubts)
    own.reporter.emit(events.Stage(stage="saving"))
    measured = _recorded_bpb(candidate, data)
    source = candidate.run
    path, manifest = store.write(
        staging.checkpoints,
        Snapshot(source.step, source.model, source.optimizer_state(), _state(candidate, place)),
        lambda files: _manifest(order, candidate, data, files, measured),
    )
    store.verify(path)
    return ImportResult(
        # The source folder may be deleted: the spec names the copied tokenizer.
        spec=candidate.body | {"data": _data_of(candidate, data)},
        step=source.step,
        tokens=candidate.tokens,
        val_bpb=candidate.measured_bpb,
        bpb_identity=measured["identity"] if measured else None,
        bpb_settings=measured["settings"] if measured else {},
        checkpoint=ImportedCheckpoint(
            name=path.name,
            step=source.step,
            bytes=sum(f.bytes for f in manifest.files.values()),
            manifest_sha256=store.manifest_sha256(path),
        ),
        history=nanochat_import.history(candidate),
    ).model_dump(mode="json")


def _data_of(candidate: Candidate, data: PreparedData) -> dict[str, Any]:
    return {**candidate.body["data"], "tokenizer": {"path": data.tokenizer_dir}}


def _recorded_bpb(candidate: Candidate, data: PreparedData) -> dict[str, Any] | None:
    """The val bpb that nanochat recorded, and how it was measured; None if its text is not here or
    nothing was measured."""
    value, spec, batch = candidate.measured_bpb, candidate.spec, candidate.plan.batch
    if candidate.corpus is None or value is None:
        return None
    settings = span.settings_of(spec, rows=batch.device_batch_size, sequence_len=batch.sequence_len)
    known = {"compute_dtype": _DTYPES.get(candidate.run.precision)}
    return {
        "value": value,
        "identity": span.identity(data, settings),
        "step": candidate.run.step,
        "settings": span.describe(data, settings),
        "muon": rules_of(spec.model, spec.optimizer).muon,
        "program": "nanochat",
        **{key: found for key, found in known.items() if found},
    }


def _place(candidate: Candidate, data: PreparedData, params: ImportParams) -> DataPosition:
    spec = candidate.spec.data
    if candidate.corpus is None:
        return DataPosition(first_cursor(spec.packing))
    return nanochat_place.find(
        candidate.run.meta,
        data,
        packing=spec.packing,
        streams=spec.streams,
        was_named=params.corpus is not None,
    )


def _state(candidate: Candidate, place: DataPosition) -> dict[str, Any]:
    source, loop = candidate.run, candidate.run.meta.loop_state
    state = TrainState(
        step=source.step,
        tokens_seen=candidate.tokens,
        loss_ema=loop.smooth_train_loss,
        ema_steps=source.step,
        training_seconds=loop.total_training_time,
    )
    return {"train": state.state_dict(), "loader": place.cursor, "rng": rng_state()}


def _manifest(
    order: JobOrder,
    candidate: Candidate,
    data: PreparedData,
    files: dict[str, FileEntry],
    measured: dict[str, Any] | None,
) -> Manifest:
    source = candidate.run
    return Manifest(
        run_id=order.run_id or order.job_id,
        attempt=0,
        step=source.step,
        tokens_seen=candidate.tokens,
        parent=None,
        why="import",
        pinned=True,
        files=files,
        spec_sha256="",
        data_identity=data.identity(),
        fingerprint={},
        evaluations={"bpb": measured} if measured else {},
        approximate=candidate.findings.approximate,
        unix_seconds=time.time(),
    )
