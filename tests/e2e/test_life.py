"""A run's life through the real daemon and the real trainer, with real signals."""

from __future__ import annotations

import hashlib
import os
import signal
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from server.client import ApiError
from tests.e2e.real_daemon import TINY, RealDaemon


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealDaemon]:
    daemon = RealDaemon(tmp_path_factory.mktemp("life"))
    yield daemon
    daemon.end()


def weights(daemon: RealDaemon, run: str, step: int) -> str:
    (found,) = [c for c in daemon.client.checkpoints(run) if c.step == step and not c.superseded]
    directory = Path(daemon.client.run(run).directory) / "checkpoints" / found.name
    return hashlib.sha256((directory / "model.safetensors").read_bytes()).hexdigest()


def losses(daemon: RealDaemon, run: str) -> dict[int, float | None]:
    answer = daemon.client.metrics(run, keys=["loss"], max_points=1000)
    assert answer.bin_steps == 1
    (series,) = answer.series
    return {point[0]: point[2] for point in series.points}


def test_paused_killed_and_extended_it_equals_its_undisturbed_twin(daemon):
    """Pause, kill -9 the trainer, kill -9 the daemon, SIGTERM, extend: the same weights."""
    traind = daemon.client
    traind.create_run({"name": "calm", **TINY})
    daemon.until_state("calm", "completed")
    traind.extend("calm", {"to_step": 160})
    daemon.until(
        "calm", lambda now: now.state == "completed" and now.step == 160
    )  # one phase after the other

    traind.create_run({"name": "stormy", **TINY})
    daemon.until("stormy", lambda now: now.step >= 10)
    traind.pause("stormy")
    paused = daemon.until_state("stormy", "paused")
    assert paused.last_checkpoint is not None
    assert paused.last_checkpoint.step == paused.step
    traind.resume("stormy")
    daemon.until("stormy", lambda now: now.step >= paused.step + 15)
    os.kill(daemon.trainer_pid("stormy"), signal.SIGKILL)
    daemon.until("stormy", lambda now: now.attempt == 3 and now.stage == "training")
    daemon.kill()
    daemon.start()
    daemon.until_state("stormy", "completed")
    daemon.client.extend("stormy", {"to_step": 160})
    daemon.until("stormy", lambda now: now.state == "completed" and now.step == 160)

    assert losses(daemon, "stormy") == losses(daemon, "calm")
    assert set(losses(daemon, "calm")) == set(range(160))
    for step in (120, 160):
        assert weights(daemon, "stormy", step) == weights(daemon, "calm", step)
    assert daemon.client.progress("stormy").exact_resume == "verified"
    attempts = daemon.client.attempts("stormy")
    assert [a.outcome for a in attempts][:2] == ["paused", "crashed"]
    scraped = httpx.get(f"{daemon.url}/metrics").text.splitlines()
    (restarts,) = [line for line in scraped if line.startswith("traind_restarts_total{")]
    assert 'reason="crashed"' in restarts
    assert float(restarts.split()[-1]) == 1
    messages = [e.message for e in daemon.client.events("stormy", limit=500).data]
    # none are repeated where the kill met the moment between a checkpoint and the next step
    told = any("crashed" in m and "repeated" in m for m in messages)
    assert told == (attempts[1].steps_lost > 0), messages
    phases = daemon.client.phases("stormy")
    assert [(p.start_step, p.end_step) for p in phases] == [(0, 120), (120, 160)]


def test_val_bpb_is_measured_again_at_the_joint_and_agrees(daemon):
    checked = [
        e.data for e in daemon.client.events("calm", limit=500).data if e.kind == "resume_checked"
    ]
    kinds = {(c["what"], c["verdict"]) for c in checked}
    assert ("val_bpb", "verified") in kinds


def test_the_database_is_sound_and_holds_each_step_once(daemon):
    uri = f"file:{daemon.data_dir / 'traind.db'}?mode=ro"
    with sqlite3.connect(uri, uri=True) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_report_sample_and_evaluation_of_the_finished_run(daemon):
    traind = daemon.client
    assert "calm" in traind.report("calm")
    job = traind.sample("calm", {"prompts": ["def "], "max_tokens": 1000, "temperature": 1.0})
    *tokens, end = traind.tokens(job.id)
    assert (end.event, end.data) == ("end", {"state": "completed"})
    assert len(tokens) > 1
    done = wait_job(daemon, job.id)
    assert done.result is not None
    text = done.result["samples"][0]["text"]
    assert "".join(token.data["text"] for token in tokens) == text != ""
    job = traind.evaluate("calm", {"bpb": True, "where": "cpu"})
    done = wait_job(daemon, job.id)
    found = [e for e in traind.evaluations("calm") if e.kind == "bpb" and e.step == 160]
    assert len({e.identity for e in found}) == 1
    values = [e.value for e in found]
    assert len(values) >= 2
    assert max(values) - min(values) < 1e-9


def test_an_audit_and_an_export_of_the_finished_run(daemon, tmp_path):
    job = daemon.client.export("calm", {"format": "nanochat"})
    done = wait_job(daemon, job.id)
    assert done.result is not None
    assert any(name.endswith("model_000160.pt") for name in done.result["files"])
    done = wait_job(daemon, daemon.client.audit("calm", {"steps": 3}).id)
    assert done.result is not None
    assert (done.result["verdict"], done.result["compared"]) == ("verified", 3)
    said = [e for e in daemon.client.events("calm", limit=1000).data if e.kind == "audit"]
    assert [e.level for e in said] == ["info"]


def test_rows_left_to_traind_are_probed_frozen_and_told_to_later_plans(daemon):
    """Real steps at several micro-batches; the fastest is taken, the others are remembered."""
    traind = daemon.client
    spec = {
        **TINY,
        "model": {**TINY["model"], "depth": 3},
        "batch": {"tokens": 512, "device_batch_size": "auto"},
        "horizon": {"steps": 10},
    }
    traind.create_run({"name": "auto", **spec})
    daemon.until_state("auto", "completed")
    rows = traind.run("auto").frozen["device_batch_size"]
    assert 8 % rows == 0
    tried = next(r for r in (1, 2) if r != rows)
    for other, said in ((tried, "over 3 steps"), (rows, "in run auto")):
        asked = {**spec, "batch": {"tokens": 512, "device_batch_size": other}}
        eta = traind.plan({"name": "next", **asked}).plan.eta
        assert said in eta.source
        assert eta.tokens_per_second > 0


def test_cancel_and_delete_leave_nothing(daemon):
    traind = daemon.client
    made = traind.create_run({"name": "short", **TINY})
    daemon.until("short", lambda now: now.step >= 1)
    with pytest.raises(ApiError) as refused:
        traind.delete_run("short")
    assert refused.value.status == 409
    traind.cancel("short")
    daemon.until_state("short", "cancelled")
    directory = Path(traind.run("short").directory)
    traind.delete_run("short")
    assert not directory.exists()
    with pytest.raises(ApiError) as gone:
        traind.run(made.id)
    assert gone.value.status == 404


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({"name": "bad", "colour": 1}, 422, "colour"),
        ({"name": "bad", "model": {"depth": 0}}, 422, "depth"),
        ({"name": "bad", "batch": {"tokens": 2048, "device_batch_size": 3}}, 422, "divisible"),
        ({"name": "bad", "data": {"source": "text", "path": "/no/such/place"}}, 422, "/no/such"),
        ({"name": "calm"}, 409, "calm"),
        ({"name": "bad", "device": "cuda:7"}, 422, "cuda:7"),
    ],
)
def test_bad_input_names_what_is_wrong_and_makes_nothing(daemon, body, status, said):
    before = {run.name for run in daemon.client.runs()}
    with pytest.raises(ApiError) as refused:
        daemon.client.create_run(body)
    assert refused.value.status == status
    assert said in str(refused.value) or said in str(vars(refused.value))
    assert {run.name for run in daemon.client.runs()} == before


def wait_job(daemon: RealDaemon, job_id: str):
    import time

    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        job = daemon.client.job(job_id)
        if job.ended_at is not None:
            assert job.state == "completed", job.message
            return job
        time.sleep(0.1)
    raise AssertionError("the job did not end")
