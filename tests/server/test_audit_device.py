"""An audit runs on the device that made the steps, and on no other."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from server.database import tables
from server.domain import jobs
from server.machine.devices import Device
from server.queries import run_views
from server.scheduling import rows as scheduling_rows
from server.supervision import job_processes
from server.supervision.context import SupervisorContext
from tests.server import rows
from tests.server.asgi import Asgi
from trainer.contract.jobs import AuditParams, EvaluateParams

GPUS = (Device("cuda:0", "a card"), Device("cuda:1", "another"), Device("cpu", "a processor"))


@pytest.fixture
def trained(asgi: Asgi) -> Asgi:
    """Steps 0 to 9 on cuda:1 with a checkpoint at 5, 10 to 19 on the CPU with one at 15."""
    run_id = asgi.create()["id"]
    with asgi.db.write() as session:
        for number, device, low, high in ((1, "cuda:1", 0, 9), (2, "cpu", 10, 19)):
            session.add(
                rows.attempt(
                    run_id=run_id, number=number, phase_index=0, token=f"t{number}", created_at=1.0,
                    device=device, start_step=low, last_step=high, outcome="paused",
                )
            )  # fmt: skip
            step = (low + high + 1) // 2
            session.add(
                tables.Checkpoint(
                    run_id=run_id, name=f"step-{step:09d}-a{number:04d}", step=step, bytes=1,
                    manifest_sha256="0", why="cadence", created_at=1.0,
                )
            )  # fmt: skip
        run = run_views.get_run(session, "demo")
        run.step, run.state = 20, "paused"
    return asgi


def audit(asgi: Asgi, **params: object) -> tables.Job:
    with asgi.db.write() as session:
        run = run_views.get_run(session, "demo")
        return jobs.audit(session, run, AuditParams.model_validate(params), now=1.0)


@pytest.mark.parametrize(
    ("params", "device"),
    [
        ({"step": 5}, "cuda:1"), ({"checkpoint": "step-000000005-a0001"}, "cuda:1"),
        ({"step": 15}, "cpu"), ({}, "cpu"),
    ],
)  # fmt: skip
def test_it_takes_the_device_of_the_steps_it_repeats(
    trained: Asgi, params: dict[str, object], device: str
) -> None:
    job = audit(trained, **params)
    assert job.params["device"] == device
    assert scheduling_rows.job_place(job, GPUS) == (device if device != "cpu" else "cpu job")
    context = SupervisorContext(trained.db, trained.settings, GPUS)
    order = job_processes._order(context, job, job.params)
    assert order.device == device


def started(asgi: Asgi, job: tables.Job, devices: tuple[Device, ...]) -> tables.Job:
    """As the supervisor starts it, with an interpreter that ends at once."""
    settings = asgi.settings.model_copy(update={"trainer_python": "/bin/false"})
    launched = job_processes.launch(SupervisorContext(asgi.db, settings, devices), job.id)
    if launched is not None:
        _, watch = launched
        deadline = time.monotonic() + 10
        while watch.launcher.exit_code(watch.workspace) is None and time.monotonic() < deadline:
            time.sleep(0.01)
    with asgi.db.read() as session:
        return session.get_one(tables.Job, job.id)


def test_the_attempt_that_is_repeated_is_one_of_that_device(trained: Asgi) -> None:
    job = audit(trained, step=5)
    assert started(trained, job, GPUS).state == "running"
    order = Path(trained.settings.paths.job(job.id) / "order.json").read_text()
    assert '"device": "cuda:1"' in order
    assert '"attempt": 1' in order


def test_a_device_that_is_gone_is_said_and_replaced_by_none(trained: Asgi) -> None:
    job = started(trained, audit(trained, step=5), GPUS[2:])
    assert (job.state, job.message) == (
        "failed",
        "it requires cuda:1, which this machine lacks; available: cpu",
    )


def test_another_job_for_the_device_takes_the_one_of_its_run(trained: Asgi) -> None:
    with trained.db.write() as session:
        last = session.query(tables.Attempt).filter_by(number=2).one()
        last.device = "cuda:1"
        run = run_views.get_run(session, "demo")
        job = jobs.evaluate(session, run, EvaluateParams(where="device", step=15), 1.0)
        assert scheduling_rows.job_place(job, GPUS) == "cuda:1"
        assert job.message == ""


def test_what_it_waits_for_is_the_run_on_that_device(trained: Asgi) -> None:
    for name, device in (("first", "cuda:0"), ("second", "cuda:1")):
        run_id = trained.create(name)["id"]
        with trained.db.write() as session:
            session.add(
                rows.attempt(
                    run_id=run_id, number=1, phase_index=0, token=name, created_at=1.0,
                    device=device,
                )
            )  # fmt: skip
        trained.move(name, "running")
    assert audit(trained, step=5).message.startswith("waits for cuda:1, where run second is")
