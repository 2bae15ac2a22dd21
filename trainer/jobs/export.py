"""Export a checkpoint: nanochat's own layout, or a Hugging Face style folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from trainer.checkpoint import store
from trainer.contract import events
from trainer.contract.orders import JobOrder
from trainer.contract.shape import shape_of
from trainer.data import tokenizer as tokenizers
from trainer.data.loader import nanochat_position
from trainer.jobs.load_model import Loaded, load
from trainer.runtime.process import Process


def run(order: JobOrder, own: Process) -> dict[str, Any]:
    """params: jobs.ExportParams with `checkpoint` resolved, {"directory": where to, "history": …}.

    The folder appears whole or not at all.
    """
    own.reporter.emit(events.Stage(stage="loading", detail="checkpoint"))
    loaded = load(order)
    target = Path(order.params.get("directory") or own.directory / "export")
    building = target.with_name(f".{target.name}.building")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    try:
        own.reporter.emit(events.Stage(stage="saving", detail=str(order.params["format"])))
        (_nanochat if order.params["format"] == "nanochat" else _huggingface)(
            loaded, order, building
        )
        shutil.rmtree(target, ignore_errors=True)
        building.rename(target)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise
    files = sorted(str(p.relative_to(target)) for p in target.rglob("*") if p.is_file())
    return {"path": str(target), "files": files, "step": loaded.manifest.step}


def _nanochat(loaded: Loaded, order: JobOrder, folder: Path) -> None:
    from trainer.interop.nanochat_export import meta_for, write_nanochat

    state = json.loads((loaded.path / store.STATE).read_bytes())
    shape, batch, step = shape_of(loaded.spec.model), loaded.plan.batch, loaded.manifest.step
    cursor = nanochat_position(
        loaded.data,
        state["loader"],
        rows=loaded.rows,
        sequence_len=batch.sequence_len,
        packing=loaded.spec.data.packing,
        streams=loaded.spec.data.streams,
    )
    meta = meta_for(
        loaded.spec,
        shape,
        step=step,
        horizon_steps=int(order.params.get("horizon_steps") or loaded.plan.horizon.steps),
        total_batch_size=batch.tokens,
        device_batch_size=loaded.rows,
        cursor=cursor,
        val_bpb=loaded.manifest.evaluations.get("bpb", {}).get("value"),
        smooth_train_loss=state["train"]["loss_ema"],
        training_seconds=state["train"]["training_seconds"],
    )
    write_nanochat(
        folder,
        loaded.spec.name,
        step,
        loaded.model.state_dict(),
        load_file(loaded.path / store.OPTIMIZER),
        meta,
        shape=shape,
        hyper=loaded.plan.hyperparameters,
        rates=_rates(order, loaded, step),
    )
    tokenizers.to_nanochat(loaded.tokenizer, folder / "tokenizer")


def _rates(order: JobOrder, loaded: Loaded, step: int):
    """The rates of the last step done, which nanochat keeps in its optimizer groups."""
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


def _huggingface(loaded: Loaded, order: JobOrder, folder: Path) -> None:
    from trainer.interop.huggingface import export_huggingface

    shape = shape_of(loaded.spec.model)
    export_huggingface(
        folder, loaded.model.state_dict(), shape, loaded.tokenizer, name=loaded.spec.name
    )
