"""The operations of a run on a GPU, and the cost of each: the scenes of test_life.py."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

STEPS_IN_A_PROBE = 1


def life(rows: int, depth: int, whole: bool) -> dict[str, Any]:
    """The cost of each operation of a run on this GPU, in order, and of each on a full one.

    Depth and rows: of the preset `rtx4070-d12`, whose step has 65,536 tokens. whole: with saves, a
    resume and probes that do not fit.
    """
    import gc

    import torch

    found, spec, plan = _lived(rows, depth, whole)
    gc.collect()
    torch.cuda.empty_cache()
    return {**found, "probe": probe(spec, plan, whole)}


def _lived(rows: int, depth: int, whole: bool) -> tuple[dict[str, Any], Any, Any]:
    import torch

    from tests.nullgpu import traffic
    from tests.nullgpu.counting import cost, host_calls, limit_memory
    from tests.nullgpu.steps import Bench

    bench = Bench(rows=rows, model={"depth": depth})
    saved: list[Any] = []
    first = cost(bench.train)
    reading: list[Any] = []
    found: dict[str, Any] = {
        "first": first.to_json(),
        "launch": cost(lambda: reading.append(bench.launch())).to_json(),
        "read": cost(lambda: reading[0].values()).to_json(),
        "host_calls": host_calls(bench.train),
        "moved": traffic.traffic(bench.train).to_json(),
        "planned": bench.plan.memory.total - bench.plan.memory.overhead,
        "breaks": dict(torch._dynamo.utils.counters["graph_break"]),
        "compile_reason": bench.stepper.compiler.reason,
    }
    with tempfile.TemporaryDirectory() as folder:
        does: dict[str, Any] = {
            "train": bench.train,
            "loss_only": bench.loss_only,
            "evaluation": lambda: evaluate(bench),
        }
        if whole:
            does["save"] = lambda: saved.append(save(bench, Path(folder), len(saved) + 1)[0])
            does["resume"] = lambda: resume(bench, saved[-1].path)
        evaluate(bench)  # the first call may autotune a kernel, which is counted too
        found["free"] = {name: cost(call).to_json() for name, call in does.items()}
        limit_memory(int(found["free"]["train"]["before_bytes"] + (64 << 20)))
        found["full"] = {name: cost(call).outcome for name, call in does.items()}
        limit_memory(None)
        found["again"] = cost(bench.train).to_json()
    found["saved"] = [str(one.error) for one in saved]
    found["reserved"] = torch.cuda.memory_reserved()
    return found, bench.spec, bench.plan


def save(bench: Any, folder: Path, step: int = 1) -> Any:
    """One complete save; returns its result, and the saver."""
    from trainer.checkpoint.background_writer import Saver
    from trainer.checkpoint.store import Manifest

    def describe(files: Any) -> Manifest:
        return Manifest(
            run_id="run_a", attempt=1, step=step, tokens_seen=0, parent=None, why="cadence",
            files=files, spec_sha256="", data_identity="", fingerprint={}, unix_seconds=0.0,
        )  # fmt: skip

    saver = Saver(folder, bench.device)
    model, optimizer = dict(bench.model.state_dict()), bench.optimizer.state_dict()
    saver.begin(step, model, optimizer, {}, describe, "cadence")
    (saved,) = saver.wait()
    return saved, saver


def evaluate(bench: Any) -> None:
    """val bpb of one micro-batch, as a run measures it."""
    import torch

    from trainer.evaluate import bpb

    table = torch.ones(bench.shape.padded_vocab_size)
    bpb.measure(bench.model, bench.batches[:1], table, token_losses=bench.stepper.token_losses)


def resume(bench: Any, path: Path) -> None:
    from trainer.checkpoint import store

    model, optimizer, _ = store.load(path)
    bench.model.load_state_dict(model)
    bench.optimizer.load_state_dict(optimizer)


def probe(spec: Any, plan: Any, whole: bool) -> dict[str, Any]:
    """Result of `device_batch_size: auto` for these rows on a free GPU; `whole`: also on a full one
    and on one with little free memory."""
    from dataclasses import asdict

    import torch

    from tests.nullgpu.counting import limit_memory
    from trainer.contract.shape import shape_of
    from trainer.train import step_probe

    def run() -> dict[str, Any]:
        found = step_probe.probe_step(
            shape_of(spec.model), plan.batch.device_batch_size,
            accumulation=min(2, plan.batch.accumulation), hyper=plan.hyperparameters,
            compute_dtype=torch.bfloat16, device="cuda", steps=STEPS_IN_A_PROBE,
        )  # fmt: skip
        return {**asdict(found), "left": torch.cuda.memory_allocated()}

    free = run()
    found = {"free": free}
    for name, share in (("full", 0.7), ("tight", 1.03)) if whole else ():
        limit_memory(int(share * free["peak_bytes"]))
        found[name] = run()
    limit_memory(None)
    return found
