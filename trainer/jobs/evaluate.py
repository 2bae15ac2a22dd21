"""Evaluation job: val bpb and CORE of a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trainer.contract import events
from trainer.contract.evaluations import EVALUATIONS, EvaluationKind
from trainer.contract.orders import JobOrder
from trainer.runtime.process import Process


def run(order: JobOrder, own: Process) -> dict[str, Any]:
    """params: jobs.EvaluateParams with `checkpoint` resolved. Returns {} if cancelled."""
    own.reporter.emit(events.Stage(stage="loading", detail="model"))
    from trainer.jobs.load_model import load

    loaded = load(order)
    _configure(loaded)
    result: dict[str, Any] = {"step": loaded.manifest.step, "checkpoint": loaded.path.name}
    for one in EVALUATIONS:
        if order.params[one.kind]:
            value = _measure(one.kind, loaded, order, own)
            if value is None:
                return {}
            result[one.kind] = value
    return result


def _configure(loaded: Any) -> None:
    """Set the device's precision and determinism to the run's."""
    from trainer.runtime import device

    where = loaded.model.device
    if where.type == "cuda":
        deterministic = bool(loaded.frozen.get("deterministic"))
        device.configure(where, threads=None, deterministic=deterministic)


def _measure(kind: EvaluationKind, loaded: Any, order: JobOrder, own: Process):
    own.reporter.emit(events.Stage(stage="evaluating", detail=kind))
    found = _MEASURES[kind](loaded, order, own)
    if found is None:
        return None
    for value, identity, settings, result, seconds in found:
        own.reporter.emit(
            events.EvaluationResult(
                evaluation=kind,
                step=loaded.manifest.step,
                value=value,
                identity=identity,
                settings=settings,
                result=result,
                seconds=seconds,
                checkpoint=loaded.path.name,
            )
        )
    return found[-1][0]


def _bpb(loaded: Any, order: JobOrder, own: Process):
    """Measure val bpb. If the run counts by the table of before July 2026, reports the value by raw
    bytes first; the run's own value comes last."""
    from trainer.evaluate import span
    from trainer.jobs import token_losses

    measured = span.measure(
        loaded.model,
        loaded.data,
        loaded.tokenizer,
        span.settings_of(
            loaded.spec,
            rows=loaded.rows,
            sequence_len=loaded.plan.batch.sequence_len,
            eval_tokens=order.params.get("eval_tokens"),
        ),
        should_stop=own.control.wants_attention,
        token_losses=token_losses.of_checkpoint(loaded, own.reporter),
    )
    if measured is None:
        return None
    both = [measured.other] if measured.other and measured.settings["token_bytes"] != "raw" else []
    return [
        (one.result.value, one.identity, one.settings, one.result.as_result(), one.result.seconds)
        for one in [*both, measured]
    ]


def _core(loaded: Any, order: JobOrder, own: Process):
    from trainer.evaluate import core, core_bundle

    path = order.params.get("core_bundle") or loaded.spec.evaluate.core_bundle
    if not path:
        raise core_bundle.BundleError("no CORE bundle: give core_bundle, or `traind fetch core`")
    limit = order.params.get("core_max_per_task") or loaded.spec.evaluate.core_max_per_task
    bundle = core_bundle.load_bundle(Path(path))
    bundle = core_bundle.for_recipe(bundle, loaded.spec.model.recipe, limit)

    def progress(done: int, total: int) -> None:
        own.reporter.emit(events.Stage(stage="evaluating", detail="core", fraction=done / total))

    result = core.evaluate(
        loaded.model,
        loaded.tokenizer,
        bundle,
        max_per_task=limit,
        should_stop=own.control.wants_attention,
        progress=progress,
    )
    if result is None:
        return None
    name = core.identity(bundle, loaded.data.tokenizer_sha256, limit)
    settings = {"max_per_task": limit, "bundle": bundle.sha256}
    return [(result.core_metric, name, settings, result.as_result(), result.seconds)]


_MEASURES = {"bpb": _bpb, "core": _core}
