"""What the machine tells a plan: the device asked for, and what it did before."""

from __future__ import annotations

import json

from server.database import tables
from server.machine import planning, throughput
from server.machine.devices import Device
from server.queries import store
from tests.server.asgi import Asgi
from trainer.contract.spec import RunSpec, resolve

CPU = Device("cpu", "Test CPU")
GPU = Device("cuda:0", "NVIDIA GeForce RTX 4070", 12 << 30, "GPU-1")


def spec(**more: object) -> RunSpec:
    return resolve({"name": "x", **more})


def test_auto_takes_the_gpu_with_its_memory_and_its_peak(asgi: Asgi) -> None:
    with asgi.db.read() as session:
        context = planning.context(session, asgi.settings, spec(), (GPU, CPU))
    assert (context.device_type, context.device_memory_bytes) == ("cuda", 12 << 30)
    assert context.peak_source
    assert context.disk_free_bytes


def test_a_device_that_is_not_here_can_still_be_planned_for(asgi: Asgi) -> None:
    with asgi.db.read() as session:
        context = planning.context(session, asgi.settings, spec(device="cuda:0"), (CPU,))
    assert (context.device_type, context.device_name) == ("cuda", None)


def test_a_measured_rate_is_used_and_named(asgi: Asgi) -> None:
    asked = spec()
    with asgi.db.write() as session:
        session.add(
            tables.Throughput(
                device=CPU.name, shape_key=throughput.shape_key(asked), rows=8, steps=100,
                tokens_per_second=1234.0, run_name="earlier", unix_seconds=1.0,
            )
        )  # fmt: skip
        session.flush()
        fixed = spec(batch={"device_batch_size": 8})
        context = planning.context(session, asgi.settings, fixed, (CPU,))
        assert context.tokens_per_second == 1234.0
        assert "earlier" in (context.throughput_source or "")
        other = spec(model={"depth": 7})
        context = planning.context(session, asgi.settings, other, (CPU,))
        assert context.tokens_per_second is None


def test_tokens_of_the_corpus_come_from_a_run_with_the_same_data(asgi: Asgi) -> None:
    asgi.create(start=False)
    with asgi.db.read() as session:
        row = store.get_run(session, "demo")
        assert planning.context(session, asgi.settings, spec(), (CPU,)).corpus_tokens is None
        path = asgi.settings.paths.run(row.id).data
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({"corpus_tokens": 4_000_000}))
        assert planning.context(session, asgi.settings, spec(), (CPU,)).corpus_tokens == 4_000_000
        other = spec(model={"vocab_size": 999})
        assert planning.context(session, asgi.settings, other, (CPU,)).corpus_tokens is None


def test_the_fetched_bundle_is_taken_where_core_is_asked_for(asgi: Asgi) -> None:
    wanted = {"name": "c", "start": False, "evaluate": {"core_every": "end"}}
    assert "CORE is asked for" in " ".join(asgi.post("/v1/plan", wanted).json()["plan"]["warnings"])
    bundle = asgi.settings.paths.core_bundle
    bundle.mkdir(parents=True)
    (bundle / "core.yaml").write_text("icl_tasks: []")
    told = asgi.post("/v1/plan", wanted).json()
    assert told["spec"]["evaluate"]["core_bundle"] == str(bundle)
    assert "CORE" not in " ".join(told["plan"]["warnings"])
    assert asgi.post("/v1/runs", wanted).json()["spec"]["evaluate"]["core_bundle"] == str(bundle)
    silent = asgi.post("/v1/runs", {"name": "silent", "start": False}).json()
    assert silent["spec"]["evaluate"]["core_bundle"] is None
