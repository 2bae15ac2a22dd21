"""Speed and memory of a shape at several micro-batches, by real steps on the device."""

from __future__ import annotations

from typing import Any

from trainer.contract import events
from trainer.contract.orders import JobOrder
from trainer.process import Process


def run(order: JobOrder, own: Process) -> dict[str, Any]:
    """params: {"spec": RunSpec, "rows": [1, 2, …]}. Result: {"device", "measured": [{rows,
    tokens_per_second, peak_bytes} or {rows, out_of_memory}]}."""
    own.reporter.emit(events.Stage(stage="probing"))
    from trainer import device
    from trainer.contract.plan import PlanContext, make_plan
    from trainer.contract.shape import shape_of
    from trainer.contract.spec import RunSpec
    from trainer.probe import probe_step

    spec = RunSpec.model_validate(order.params["spec"])
    where = device.resolve(order.device)
    hyper = make_plan(spec, PlanContext()).hyperparameters
    dtype = device.compute_dtype(where, spec.numerics.precision)
    measured: list[dict[str, Any]] = []
    for rows in order.params["rows"]:
        if own.control.wants_attention():
            break
        found = probe_step(
            shape_of(spec.model), rows, hyper=hyper, device=where, compute_dtype=dtype
        )
        if not found.fits:
            measured.append({"rows": rows, "out_of_memory": True})
            break
        rate = 1 / found.seconds_per_token
        measured.append({"rows": rows, "tokens_per_second": rate, "peak_bytes": found.peak_bytes})
    return {"device": device.name_of(where), "measured": measured}
