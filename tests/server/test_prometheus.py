"""What Prometheus is told: the names we promise, true values, bounded labels."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample
from sqlalchemy import select

from server.database import tables
from server.metrics import counters
from server.prometheus import rows
from server.queries import run_views
from tests.server.asgi import Asgi
from tests.server.rows import attempt as attempt_row

# name: labels beside those of a histogram. The contract with dashboards and alert rules.
PROMISED: dict[str, set[str]] = {
    "train_step": {"run"}, "train_end_step": {"run"}, "tokens_seen": {"run"},
    "train_loss": {"run"}, "val_bpb": {"run"}, "core_metric": {"run"},
    "learning_rate_multiplier": {"run"}, "tokens_per_second": {"run"}, "mfu_ratio": {"run"},
    "vram_bytes": {"run", "kind"}, "power_watts": {"run"},
    "last_step_timestamp_seconds": {"run"}, "eta_timestamp_seconds": {"run"},
    "checkpoint_last_success_timestamp_seconds": {"run"}, "run_state": {"run", "state"},
    "run_info": {"run", "phase", "model", "device"},
    "tokens_processed_total": {"run"}, "steps_processed_total": {"run"},
    "lost_steps_total": {"run"}, "restarts_total": {"run", "reason"},
    "energy_joules_total": {"run"}, "checkpoint_bytes_total": {"run"},
    "step_duration_seconds_bucket": {"run", "le"},
    "checkpoint_save_seconds_bucket": {"run", "le"},
    "database_wal_bytes": set(),
    "disk_free_bytes": set(), "ingest_lag_seconds": set(), "build_info": {"version"},
    "http_requests_total": {"method", "route", "status"}, "metrics_dropped_total": set(),
}  # fmt: skip
PROGRESS = {
    "loss": 2.5, "lr_multiplier": 0.5, "tokens_per_second": 1e5, "mfu": 0.4, "power_watts": 200.0,
    "val_bpb": 0.9, "core": 0.2, "step_seconds": 2.0, "vram_allocated_bytes": 1,
    "vram_reserved_bytes": 2, "vram_peak_bytes": 3, "vram_total_bytes": 4,
}  # fmt: skip


def running(asgi: Asgi, name: str = "demo") -> None:
    """A run as it looks in the middle of its training."""
    asgi.create(name)
    with asgi.db.write() as session:
        run = run_views.get_run(session, name)
        run.state, run.step, run.last_step_at, run.progress = "running", 50, 1000.0, dict(PROGRESS)
        session.add(
            tables.Checkpoint(
                run_id=run.id, name="step-000000050-a0001", step=50, bytes=9, why="cadence",
                manifest_sha256="", created_at=900.0,
            )
        )  # fmt: skip
        tally = counters.Tally()
        tally.add(counters.STEPS, name, 60)
        tally.add(counters.RESTARTS, name, 1, "crashed")
        tally.observe(counters.STEP_SECONDS, name, 2.0)
        tally.observe(counters.SAVE_SECONDS, name, 700.0)
        tally.write(session)


def samples(asgi: Asgi) -> Iterator[Sample]:
    text = asgi.get("/metrics").text
    for family in text_string_to_metric_families(text):
        yield from family.samples


def value(asgi: Asgi, name: str, **labels: str) -> float | None:
    found = [
        s.value for s in samples(asgi) if s.name == name and labels.items() <= s.labels.items()
    ]
    return found[0] if found else None


def test_every_promised_name_is_there_with_its_labels_and_no_other(asgi: Asgi) -> None:
    running(asgi)
    asgi.get("/v1/runs")
    seen: dict[str, set[str]] = {}
    for sample in samples(asgi):
        seen.setdefault(sample.name, set()).update(sample.labels)
    for name, labels in PROMISED.items():
        assert seen.get(f"traind_{name}") == labels, name
    allowed = {f"traind_{name}" for name in PROMISED}
    stems = tuple(name.removesuffix("_bucket").removesuffix("_total") for name in allowed)
    for name in seen:
        ours = name.startswith((*stems, "traind_http_request_duration_seconds", "process_"))
        assert ours, f"{name} is not documented"


def test_a_histogram_is_read_anew_when_something_was_observed(asgi: Asgi) -> None:
    running(asgi, "a")
    running(asgi, "b")
    count = "traind_step_duration_seconds_count"
    assert (value(asgi, count, run="a"), value(asgi, count, run="b")) == (1, 1)
    with asgi.db.write() as session:
        tally = counters.Tally()
        tally.observe(counters.STEP_SECONDS, "a", 0.02)
        tally.write(session)
    assert (value(asgi, count, run="a"), value(asgi, count, run="b")) == (2, 1)
    assert value(asgi, "traind_step_duration_seconds_bucket", run="a", le="0.025") == 1
    assert value(asgi, "traind_step_duration_seconds_sum", run="a") == pytest.approx(2.02)
    asgi.request("PATCH", "/v1/runs/a", json={"name": "c"})
    assert (value(asgi, count, run="a"), value(asgi, count, run="c")) == (None, 2)


def test_the_values_are_those_of_the_rows(asgi: Asgi) -> None:
    running(asgi)
    assert value(asgi, "traind_train_step", run="demo") == 50
    assert value(asgi, "traind_train_loss", run="demo") == 2.5
    shown = asgi.get("/v1/runs/demo/progress").json()
    assert value(asgi, "traind_eta_timestamp_seconds", run="demo") == pytest.approx(
        shown["finish_at"], abs=1.0
    )
    assert value(asgi, "traind_checkpoint_last_success_timestamp_seconds") == 900
    assert value(asgi, "traind_run_state", state="running") == 1
    assert value(asgi, "traind_run_state", state="paused") == 0
    assert value(asgi, "traind_run_info", model="d4", run="demo") == 1
    assert value(asgi, "traind_steps_processed_total", run="demo") == 60
    assert value(asgi, "traind_lost_steps_total", run="demo") == 0
    assert value(asgi, "traind_restarts_total", reason="crashed") == 1
    assert value(asgi, "traind_step_duration_seconds_bucket", le="1.5") == 0
    assert value(asgi, "traind_step_duration_seconds_bucket", le="2") == 1
    assert value(asgi, "traind_checkpoint_save_seconds_bucket", le="+Inf") == 1


def test_a_run_that_stands_still_has_no_speed(asgi: Asgi) -> None:
    running(asgi)
    asgi.move("demo", "paused")
    for name in ("tokens_per_second", "mfu_ratio", "power_watts", "eta_timestamp_seconds"):
        assert value(asgi, f"traind_{name}", run="demo") is None
    assert value(asgi, "traind_val_bpb", run="demo") == 0.9


def test_an_ended_run_is_shown_for_an_hour(asgi: Asgi) -> None:
    running(asgi)
    with asgi.db.write() as session:
        run = run_views.get_run(session, "demo")
        run.state, run.ended_at = "completed", time.time() - 3000
    assert value(asgi, "traind_train_step", run="demo") == 50
    with asgi.db.write() as session:
        run_views.get_run(session, "demo").ended_at = time.time() - 3700
    assert value(asgi, "traind_train_step", run="demo") is None


def test_a_damaged_checkpoint_is_no_success(asgi: Asgi) -> None:
    running(asgi)
    with asgi.db.write() as session:
        (saved,) = session.scalars(select(tables.Checkpoint))
        saved.bad = "sha256 differs"
    assert value(asgi, "traind_checkpoint_last_success_timestamp_seconds") is None


def test_f55_cardinality_is_capped_and_what_is_dropped_counted(
    asgi: Asgi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "MAX_RUNS", 3)
    for index in range(5):
        asgi.create(f"waiting-{index}")
    running(asgi, "busy")
    shown = {s.labels["run"] for s in samples(asgi) if s.name == "traind_train_step"}
    assert shown == {"busy", "waiting-0", "waiting-1"}
    assert value(asgi, "traind_metrics_dropped_total") == 6


def test_f55_paths_and_methods_of_strangers_make_no_labels(asgi: Asgi) -> None:
    for index in range(20):
        asgi.get(f"/v1/nothing/{index}")
        asgi.get(f"/v1/runs/stranger-{index}")
        asgi.request(f"METHOD{index}", "/v1/runs")
    found = [s.labels for s in samples(asgi) if s.name == "traind_http_requests_total"]
    assert {label["route"] for label in found} <= {"none", "/v1/runs/{run}", "/v1/runs", "/metrics"}
    assert {label["method"] for label in found} <= {"GET", "other"}


def test_two_apps_share_nothing(asgi: Asgi, tmp_path: Any) -> None:
    asgi.get("/healthz")
    other = Asgi(tmp_path / "other")
    assert value(other, "traind_http_requests_total", route="/healthz") is None
    other.close()


def test_lag_is_the_age_of_the_oldest_unread_report(asgi: Asgi) -> None:
    asgi.create()
    with asgi.db.write() as session:
        run = run_views.get_run(session, "demo")
        session.add(
            attempt_row(
                run_id=run.id, number=1, phase_index=0, token="t", created_at=1.0, device="cpu",
                outbox_offset=3,
            )
        )  # fmt: skip
        home = asgi.settings.paths.run(run.id).attempt(1)
    assert value(asgi, "traind_ingest_lag_seconds") == 0
    home.mkdir(parents=True)
    line = json.dumps({"seq": 0, "ts": time.time() - 30})
    (home / "outbox.jsonl").write_text(f"xx\n{line}\n")
    assert 29 < (value(asgi, "traind_ingest_lag_seconds") or 0) < 40


def test_a_scrape_of_a_hundred_runs_takes_little_time(asgi: Asgi) -> None:
    for index in range(100):
        asgi.create(f"run-{index}")
    with asgi.db.write() as session:
        for run in session.query(tables.Run):
            run.state, run.progress, run.last_step_at = "running", dict(PROGRESS), 1.0
    scrape = asgi.app.state.metrics.scrape
    spent = []
    for _ in range(10):
        began = time.thread_time()
        scrape(asgi.db, time.time())
        spent.append(time.thread_time() - began)
    assert min(spent) < 0.020


@pytest.mark.needs("prometheus")
def test_promtool_finds_nothing_to_say(asgi: Asgi) -> None:
    running(asgi)
    text = asgi.get("/metrics").content
    done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stderr == b""
