"""What stands in the way of a running run is on every surface, although nothing could be written:
the database is on the disk that is full."""

from __future__ import annotations

import json
import time
from collections import namedtuple
from typing import Any

import pytest

from server.api.stream_source import source_of
from server.cli.view import line
from server.database import tables
from server.machine import disk
from server.queries import run_views
from server.schemas.progress import Progress
from tests.server import rows
from tests.server.asgi import Asgi
from trainer.contract.rundir import LOCK

Usage = namedtuple("Usage", "total used free")
STEP_SECONDS = 2.0


def trains(asgi: Asgi, stage: str = "training", last_step_at: float | None = None) -> None:
    asgi.create("demo")
    with asgi.db.write() as session:
        run = run_views.get_run(session, "demo")
        run.state, run.step, run.end_step = "running", 50, 200
        run.last_step_at = time.time() if last_step_at is None else last_step_at
        run.progress = {
            "attempt": 1, "rate_steps": 40, "loss": 9.0, "loss_smooth": 3.0,
            "step_seconds": STEP_SECONDS, "tokens_per_second": run.batch_tokens / STEP_SECONDS,
        }  # fmt: skip
        run.totals = {"seconds": 100.0}
        session.add(
            rows.attempt(
                run_id=run.id, number=1, phase_index=0, token="t", created_at=1.0, device="cpu",
                stage=stage,
            )
        )  # fmt: skip
        home = asgi.settings.paths.run(run.id).attempt(1)
    home.mkdir(parents=True)
    (home / LOCK).write_text(json.dumps({"waiting": None}))


def waits_for_space(asgi: Asgi) -> None:
    """As the trainer reports it: in the lock file, which needs no room."""
    with asgi.db.read() as session:
        home = asgi.settings.paths.run(run_views.get_run(session, "demo").id).attempt(1)
    (home / LOCK).write_text(json.dumps({"waiting": "disk_full"}))


def seen(asgi: Asgi) -> list[Any]:
    """The condition in the list, the run, its progress and the live stream."""
    live = source_of(asgi.db).progress(None)
    return [
        asgi.get("/v1/runs").json()["data"][0]["condition"],
        asgi.get("/v1/runs/demo").json()["condition"],
        asgi.get("/v1/runs/demo/progress").json()["condition"],
        *(json.loads(text or "{}")["condition"] for text in live.values()),
    ]


def test_a_run_that_steps_has_no_condition(asgi: Asgi) -> None:
    trains(asgi)
    assert seen(asgi) == [None] * 4


def test_a_full_disk_is_on_every_surface(asgi: Asgi) -> None:
    trains(asgi)
    waits_for_space(asgi)
    found = seen(asgi)
    assert [c["code"] for c in found] == ["disk_full"] * 4
    assert "Waiting for disk space, " in found[0]["message"]
    assert " left" in found[0]["message"]


def test_silence_is_counted_in_the_runs_own_steps(asgi: Asgi) -> None:
    trains(asgi, last_step_at=time.time() - 100)
    assert [c["code"] for c in seen(asgi)] == ["silent"] * 4
    assert "50 × the usual 2 s" in seen(asgi)[0]["message"]


def test_an_evaluation_is_no_silence(asgi: Asgi) -> None:
    trains(asgi, stage="evaluating", last_step_at=time.time() - 100)
    assert seen(asgi) == [None] * 4


def test_the_stream_sends_a_condition_a_stage_and_a_checkpoint_when_they_change(
    asgi: Asgi,
) -> None:
    """Not only with the next step: a run that evaluates, or waits for room, does none."""
    trains(asgi)
    progress = source_of(asgi.db).progress
    seen = [progress(None)]
    waits_for_space(asgi)
    seen.append(progress(None))
    with asgi.db.write() as session:
        run = run_views.get_run(session, "demo")
        run_id = run.id
        attempt = session.query(tables.Attempt).one()
        attempt.stage, attempt.stage_fraction = "evaluating", 0.5
    seen.append(progress(None))
    with asgi.db.write() as session:
        run = session.get_one(tables.Run, run_id)
        run.progress = {**run.progress, "val_bpb": 0.9}
    seen.append(progress(None))
    with asgi.db.write() as session:
        session.add(
            tables.Checkpoint(
                run_id=run_id, name="step-000000050-a0001", step=50, bytes=9, why="cadence",
                manifest_sha256="", created_at=900.0,
            )
        )  # fmt: skip
    seen.append(progress(None))
    texts = [answer[run_id] for answer in seen]
    assert len(set(texts)) == len(texts)
    assert json.loads(texts[-1] or "")["last_checkpoint"]["step"] == 50
    assert progress(None) == seen[-1]


def test_f19_a_daemon_on_a_full_disk_is_not_ready(
    asgi: Asgi, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert asgi.get("/readyz").status_code == 200
    assert asgi.get("/v1/system").json()["disk_is_full"] is False
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda path: Usage(10**12, 10**12, 12_345))
    answer = asgi.get("/readyz")
    assert answer.status_code == 503
    assert "The disk is full: 12.3 kB left" in answer.json()["detail"]
    system = asgi.get("/v1/system").json()
    assert system["warnings"] == ["Disk almost full: 12.3 kB left"]
    assert system["disk_is_full"] is True


def test_the_eta_is_one_number_everywhere(asgi: Asgi) -> None:
    trains(asgi)
    shown = asgi.get("/v1/runs/demo/progress").json()
    left = shown["eta_seconds"]
    assert left >= 150 * STEP_SECONDS
    assert left == pytest.approx(sum(shown["eta_parts"].values()))
    for answer in (asgi.get("/v1/runs").json()["data"][0], asgi.get("/v1/runs/demo").json()):
        assert answer["eta_seconds"] == pytest.approx(left)
        assert answer["loss_smooth"] == 3.0
    scraped = next(
        line for line in asgi.get("/metrics").text.splitlines()
        if line.startswith("traind_eta_timestamp_seconds{")
    )  # fmt: skip
    assert float(scraped.split()[-1]) == pytest.approx(shown["finish_at"], abs=1.0)


@pytest.mark.parametrize("cause", ["disk", "silence"])
def test_a_run_that_stands_still_has_neither_a_time_left_nor_a_speed(
    asgi: Asgi, cause: str
) -> None:
    trains(asgi)
    moving = scraped(asgi)
    assert {"traind_eta_timestamp_seconds", "traind_tokens_per_second"} <= moving
    with asgi.db.write() as session:
        run_views.get_run(session, "demo").last_step_at = time.time() - (
            6 if cause == "disk" else 100
        )
    if cause == "disk":
        waits_for_space(asgi)
    live = source_of(asgi.db).progress(None)
    for answer in (
        asgi.get("/v1/runs").json()["data"][0],
        asgi.get("/v1/runs/demo").json(),
        asgi.get("/v1/runs/demo/progress").json(),
        *(json.loads(text or "{}") for text in live.values()),
    ):
        assert answer["condition"] is not None
        assert answer["eta_seconds"] is None
        assert answer["tokens_per_second"] is None
        assert answer.get("mfu") is None
    shown = Progress.model_validate(asgi.get("/v1/runs/demo/progress").json())
    assert (shown.finish_at, shown.eta_parts, shown.step_seconds) == (None, None, STEP_SECONDS)
    assert "ETA –" in line(shown)
    gone = {"traind_eta_timestamp_seconds", "traind_tokens_per_second", "traind_mfu_ratio"}
    assert not scraped(asgi) & gone
    assert "traind_last_step_timestamp_seconds" in scraped(asgi)


def scraped(asgi: Asgi) -> set[str]:
    """Names of the metrics that a scrape has of the run."""
    rows = asgi.get("/metrics").text.splitlines()
    return {row.partition("{")[0] for row in rows if 'run="demo"' in row}


@pytest.mark.parametrize("state", ["queued", "preparing", "recovering"])
def test_a_run_that_cannot_start_on_a_full_disk_says_so(
    asgi: Asgi, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    asgi.create("demo")
    with asgi.db.write() as session:
        run_views.get_run(session, "demo").state = state
    assert seen(asgi) == [None] * 4
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda path: Usage(10**12, 10**12, 12_345))
    found = seen(asgi)
    assert [c["code"] for c in found] == ["disk_full"] * 4
    assert found[0]["message"] == (
        "Waiting for disk space, 12.3 kB left: it starts by itself once space is free."
    )
    assert asgi.get("/v1/runs/demo/progress").json()["eta_seconds"] is None


def test_a_run_that_waits_for_its_hours_does_not_wait_for_the_disk(
    asgi: Asgi, monkeypatch: pytest.MonkeyPatch
) -> None:
    asgi.create("demo")
    with asgi.db.write() as session:
        run_views.get_run(session, "demo").reason = "outside_hours"
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda path: Usage(10**12, 10**12, 12_345))
    assert seen(asgi) == [None] * 4


@pytest.mark.parametrize("state", ["completed", "failed", "cancelled"])
def test_a_run_that_has_ended_has_no_time_left_and_says_what_it_took(
    asgi: Asgi, state: str
) -> None:
    trains(asgi)
    with asgi.db.write() as session:
        run = run_views.get_run(session, "demo")
        run.state, run.step = state, run.end_step if state == "completed" else 50
    for answer in (asgi.get("/v1/runs/demo/progress").json(), asgi.get("/v1/runs/demo").json()):
        assert answer["eta_seconds"] is None
        assert answer["training_seconds"] == 100.0


def test_the_preview_of_an_extend_takes_the_rate_that_was_measured(asgi: Asgi) -> None:
    trains(asgi)
    with asgi.db.write() as session:
        run = run_views.get_run(session, "demo")
        run.state, run.step, measured = "completed", run.end_step, run.batch_tokens / STEP_SECONDS
    ask = {"add_steps": 1000}
    answer = asgi.post("/v1/runs/demo/extend?dry_run=true", ask).json()["plan"]["eta"]
    assert answer["tokens_per_second"] == pytest.approx(measured)
    assert answer["training"] == pytest.approx(1000 * STEP_SECONDS)
    planned = asgi.post("/v1/plan", {"run": "demo", "extend": ask}).json()["extend"]["eta"]
    assert planned == answer
