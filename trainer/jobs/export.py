"""Export job: a checkpoint as nanochat's layout or as a Hugging Face folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from trainer.checkpoint import store
from trainer.contract import durable, events
from trainer.contract.orders import JobOrder
from trainer.contract.shape import shape_of
from trainer.data import tokenizer as tokenizers
from trainer.data.loader import nanochat_position
from trainer.data.packed_corpus import nanochat_pickle
from trainer.interop.errors import InteropError
from trainer.jobs.load_model import Loaded, load
from trainer.runtime.process import Process


def run(order: JobOrder, own: Process) -> dict[str, Any]:
    """params: jobs.ExportParams with `checkpoint` resolved, {"directory": where to, "history": …}.

    The folder appears complete or not at all.
    """
    own.reporter.emit(events.Stage(stage="loading", detail="checkpoint"))
    loaded = load(order)
    target = Path(order.params.get("directory") or own.directory / "export")
    building = target.with_name(f".{target.name}.building")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    try:
        own.reporter.emit(events.Stage(stage="saving", detail=str(order.params["format"])))
        write = _huggingface if order.params["format"] == "huggingface" else _nanochat
        notes = write(loaded, order, building)
        shutil.rmtree(target, ignore_errors=True)
        durable.put_in_place(building, target)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise
    files = sorted(str(p.relative_to(target)) for p in target.rglob("*") if p.is_file())
    return {"path": str(target), "files": files, "step": loaded.manifest.step, "notes": notes}


def _nanochat(loaded: Loaded, order: JobOrder, folder: Path) -> list[str]:
    """Write nanochat's files; returns what nanochat would do differently, in sentences."""
    from trainer.interop import nanochat_export as nanochat
    from trainer.interop.nanochat_export_meta import experiment_meta, meta_for

    spec, shape, step = loaded.spec, shape_of(loaded.spec.model), loaded.manifest.step
    asked = str(order.params["format"]).removeprefix("nanochat").removeprefix("-")
    generation: Any = asked or nanochat.generation_for(shape)
    # As saved: loaded for evaluation, tables may have another dtype.
    model, optimizer = (load_file(loaded.path / name) for name in (store.MODEL, store.OPTIMIZER))
    shape_there = nanochat.expressed(generation, shape, model)
    nanochat.require_specials(generation, loaded.tokenizer.special_tokens)
    cursor, notes = _cursor(loaded, generation)
    at = _export_state(loaded, order, cursor, int(optimizer["adamw.step"]))
    nanochat.write_nanochat(
        folder,
        spec.name,
        step,
        model,
        optimizer,
        meta_for(spec, shape_there, at, generation),
        shape=shape,
        hyper=loaded.plan.hyperparameters,
        rates=_rates(order, loaded, step),
        experiment=spec.name if generation == "v2" else None,
    )
    place = folder
    if generation == "v2":
        dataset = Path(spec.data.path or spec.name).name or spec.name
        place = folder / "datasets" / dataset
        meta = json.dumps(experiment_meta(spec.name, dataset), indent=2)
        (folder / "experiments" / spec.name / "meta.json").write_text(meta)
    _write_tokenizer(loaded, place / "tokenizer")
    return [*notes, *_notes(loaded, generation)]


def _cursor(loaded: Loaded, generation: str) -> tuple[dict[str, Any], list[str]]:
    """nanochat's data cursor, and the parts of traind's that it cannot represent. Raises
    InteropError if there is none.
    """
    state = json.loads((loaded.path / store.STATE).read_bytes())["loader"]
    batch, data = loaded.plan.batch, loaded.spec.data
    is_packed = data.source == "nanochat_packed"
    if generation == "v2":
        if is_packed:
            return {"row": state["row"]}, []
        row = loaded.manifest.step * batch.tokens // batch.sequence_len
        return {"row": row}, [
            f"v2 reads packed shards, and this run did not: dataloader_row is {row:,}, as many "
            "rows as it has trained; pack its corpus with base_prepare and this tokenizer"
        ]
    if is_packed:
        raise InteropError("nanochat v1", "reads no packed shards, which this run is trained on")
    cursor = nanochat_position(
        loaded.data,
        state,
        rows=loaded.rows,
        sequence_len=batch.sequence_len,
        packing=data.packing,
        streams=data.streams,
    )
    if data.streams == 1:
        return cursor, []
    return cursor, [
        f"the run reads {data.streams} data streams; nanochat on one GPU continues one of them"
    ]


def _export_state(loaded: Loaded, order: JobOrder, cursor: dict[str, Any], updates: int):
    from trainer.interop.nanochat_export_meta import ExportState

    train = json.loads((loaded.path / store.STATE).read_bytes())["train"]
    return ExportState(
        step=loaded.manifest.step,
        horizon_steps=int(order.params.get("horizon_steps") or loaded.plan.horizon.steps),
        total_batch_size=loaded.plan.batch.tokens,
        device_batch_size=loaded.rows,
        cursor=cursor,
        updates=updates,
        val_bpb=loaded.manifest.evaluations.get("bpb", {}).get("value"),
        smooth_train_loss=train["loss_ema"],
        training_seconds=train["training_seconds"],
    )


def _write_tokenizer(loaded: Loaded, folder: Path) -> None:
    """Write nanochat's two tokenizer files: the exact pickle that packed shards were made with, if
    there is one, since v2 identifies its shards by the bytes of that file."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizers.to_nanochat(loaded.tokenizer, folder, loaded.spec.evaluate.token_bytes)
    if loaded.data.tokenizer_id is None:
        return
    kept = nanochat_pickle(loaded.data.tokenizer_dir, loaded.data.tokenizer_id)
    if kept.exists():
        shutil.copyfile(kept, folder / kept.name)


def _notes(loaded: Loaded, generation: str) -> list[str]:
    """Settings that nanochat's files cannot represent, where nanochat would behave differently."""
    found, spec, muon = [], loaded.spec, loaded.plan.hyperparameters.muon
    if muon != "2026-07":
        which = "v2" if generation == "v2" else "nanochat from 3 July 2026 on"
        found.append(
            f"{which} continues with Muon of July; this run has the Muon before it ({muon})"
        )
    if spec.schedule.warmdown_shape != "linear":
        found.append("nanochat's warmdown is linear; this run's is not")
    if spec.data.packing != "best_fit":
        found.append("nanochat packs best_fit, which cuts documents; this run loses nothing")
    return found


def _rates(order: JobOrder, loaded: Loaded, step: int):
    """Learning rates of the last completed step, which nanochat keeps in its optimizer groups."""
    from trainer.contract.schedule import (
        PhaseSchedule,
        lr_multiplier,
        muon_momentum,
        weight_decay_multiplier,
    )
    from trainer.interop.nanochat_export import Rates

    given = order.params.get("schedule")
    schedule = PhaseSchedule.model_validate(given) if given else loaded.plan.schedule
    last = max(0, step - 1)
    return Rates(
        lr_multiplier=lr_multiplier(schedule, last),
        momentum=muon_momentum(schedule, last),
        weight_decay=weight_decay_multiplier(schedule, last)
        * loaded.plan.hyperparameters.weight_decay,
    )


def _huggingface(loaded: Loaded, order: JobOrder, folder: Path) -> list[str]:
    from trainer.interop.huggingface import export_huggingface

    shape = shape_of(loaded.spec.model)
    export_huggingface(
        folder, loaded.model.state_dict(), shape, loaded.tokenizer, name=loaded.spec.name
    )
    return []
