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
    import torch

    from trainer import device
    from trainer.contract.shape import shape_of
    from trainer.contract.spec import RunSpec
    from trainer.step import probe_step

    spec = RunSpec.model_validate(order.params["spec"])
    where = device.resolve(order.device)
    dtype = device.compute_dtype(where, spec.numerics.precision)
    measured: list[dict[str, Any]] = []
    for rows in order.params["rows"]:
        if own.control.wants_attention():
            break
        try:
            probed = probe_step(shape_of(spec.model), rows, device=where, compute_dtype=dtype)
        except torch.OutOfMemoryError:
            measured.append({"rows": rows, "out_of_memory": True})
            break
        seconds, peak = probed
        measured.append({"rows": rows, "tokens_per_second": 1 / seconds, "peak_bytes": peak})
    return {"device": device.name_of(where), "measured": measured}
