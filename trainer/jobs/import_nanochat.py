"""Import a nanochat checkpoint: verified in every part, then laid out as a run of ours.

Everything is built in the job's own directory under `import/`; the server moves it into place when
it makes the rows, so that nothing half-imported is ever seen.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

from trainer.checkpoint import store
from trainer.checkpoint.store import FileEntry, Manifest, Snapshot
from trainer.contract import events
from trainer.contract.jobs import ImportedCheckpoint, ImportParams, ImportResult
from trainer.contract.orders import JobOrder
from trainer.contract.plan import PlanContext, make_plan
from trainer.contract.rundir import RunDir, write_durably
from trainer.contract.spec import RunSpec, resolve
from trainer.data import tokenizer as tokenizers
from trainer.data.cursor import skip_to_row_group
from trainer.data.prepare import prepare
from trainer.data.prepared import PreparedData
from trainer.evaluate import span
from trainer.interop.nanochat import NanochatRun, read_nanochat
from trainer.interop.nanochat_meta import Meta, spec_from_meta
from trainer.runtime.process import Process
from trainer.train.state import TrainState, rng_state

STAGING = "import"
CORPUS = "base_data_climbmix"
BUFFER = (
    "imported: nanochat does not save its packing buffer, so the data goes on at the next row "
    "group with an empty one"
)
FP8 = "nanochat did the products in fp8, which go on in the compute dtype"


def run(order: JobOrder, own: Process) -> dict[str, Any]:
    """params: jobs.ImportParams. Result: jobs.ImportResult. Raises InteropError, DataError."""
    params = ImportParams.model_validate(order.params)
    base = Path(params.path).expanduser()
    staging = RunDir(own.directory / STAGING)
    shutil.rmtree(staging.root, ignore_errors=True)
    staging.checkpoints.mkdir(parents=True)
    try:
        return _import(order, own, params, base, staging)
    except BaseException:
        shutil.rmtree(staging.root, ignore_errors=True)
        raise


def _import(
    order: JobOrder, own: Process, params: ImportParams, base: Path, staging: RunDir
) -> dict[str, Any]:
    own.reporter.emit(events.Stage(stage="verifying", detail="checkpoint files"))
    source = read_nanochat(base, params.tag, params.step)
    own.reporter.emit(events.Stage(stage="tokenizing", detail="tokenizer and corpus"))
    seed = own.directory / "tokenizer"
    tokenizers.from_nanochat(base / "tokenizer").save(seed)
    body = spec_from_meta(
        source.meta,
        name=params.name,
        corpus=base / CORPUS,
        tokenizer=seed,
        precision=source.precision,
    )
    spec = resolve(body)
    data = prepare(
        spec.data,
        data_dir=Path(order.data_dir),
        vocab_size=spec.model.vocab_size,
        tokens_needed=0,
        seed_tokenizer_dir=seed,
        progress=lambda stage, fraction, words: own.reporter.emit(
            events.Stage(stage="tokenizing", fraction=fraction, detail=words)
        ),
    )
    write_durably(staging.data, data.model_dump_json(indent=1).encode())
    # The job's own folder will not last: the spec names the tokenizer where it was copied to.
    body["data"]["tokenizer"] = {"path": data.tokenizer_dir}
    return _result(order, own, source, spec, body, data, staging)


def _result(
    order: JobOrder,
    own: Process,
    source: NanochatRun,
    spec: RunSpec,
    body: dict[str, Any],
    data: PreparedData,
    staging: RunDir,
) -> dict[str, Any]:
    own.reporter.emit(events.Stage(stage="saving"))
    plan = make_plan(spec, PlanContext(device_type="cpu"))
    batch = plan.batch
    measured_by = span.settings_of(
        spec, rows=batch.device_batch_size, sequence_len=batch.sequence_len
    )
    identity = span.identity(data, measured_by)
    tokens = source.step * batch.tokens
    path, manifest = store.write(
        staging.checkpoints,
        Snapshot(source.step, source.model, source.optimizer, _state(source, tokens)),
        lambda files: _manifest(order, source, data, files, tokens, identity),
    )
    store.verify(path)
    return ImportResult(
        spec=body,
        step=source.step,
        tokens=tokens,
        val_bpb=source.meta.val_bpb,
        bpb_identity=identity,
        checkpoint=ImportedCheckpoint(
            name=path.name,
            step=source.step,
            bytes=sum(f.bytes for f in manifest.files.values()),
            manifest_sha256=store.manifest_sha256(path),
        ),
        history={"source": "nanochat", "tag": source.tag, "meta": source.raw_meta},
    ).model_dump(mode="json")


def approximate(meta: Meta) -> str:
    """Why the run cannot go on exactly as nanochat's would have."""
    return f"{BUFFER}; {FP8}" if meta.user_config.fp8 else BUFFER


def _state(source: NanochatRun, tokens: int) -> dict[str, Any]:
    loop = source.meta.loop_state
    state = TrainState(
        step=source.step,
        tokens_seen=tokens,
        loss_ema=loop.smooth_train_loss,
        ema_steps=source.step,
        training_seconds=loop.total_training_time,
    )
    cursor = skip_to_row_group(source.cursor.model_dump())
    return {"train": state.state_dict(), "loader": cursor, "rng": rng_state()}


def _manifest(
    order: JobOrder,
    source: NanochatRun,
    data: PreparedData,
    files: dict[str, FileEntry],
    tokens: int,
    identity: str,
) -> Manifest:
    bpb = source.meta.val_bpb
    measured = {"value": bpb, "identity": identity, "step": source.step}
    return Manifest(
        run_id=order.run_id or order.job_id,
        attempt=0,
        step=source.step,
        tokens_seen=tokens,
        parent=None,
        why="import",
        pinned=True,
        files=files,
        spec_sha256="",
        data_identity=data.identity(),
        fingerprint={},
        evaluations={"bpb": measured} if bpb is not None else {},
        approximate=approximate(source.meta),
        unix_seconds=time.time(),
    )
