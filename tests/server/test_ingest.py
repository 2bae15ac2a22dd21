"""Journals become rows exactly once, whatever is killed, cut, flipped or replaced."""

from __future__ import annotations

import json
import math
import os
import random
import subprocess
import sys
from bisect import bisect_right
from typing import Any

import pytest
from sqlalchemy import select

from server.database import tables
from server.database.db import Database
from server.ingestion import ingest
from server.metrics import counters, rollups
from server.queries import curves, eta, event_views, history, job_views, run_views
from server.settings import Settings
from tests.server import rows
from tests.server.reporting import BATCH_TOKENS, Reporter, attempt, create, step
from trainer.contract import events
from trainer.contract.journal import JournalHeader, JournalReader, Writer
from trainer.contract.reasons import Reason


def _state(db: Database, reporter: Reporter) -> dict[str, Any]:
    """Everything ingestion makes of one attempt, to be compared between two ways of reading."""
    with db.read() as session:
        row = session.get_one(tables.Attempt, reporter.attempt_id)
        run = session.get_one(tables.Run, reporter.run_id)
        ask = session.connection().exec_driver_sql
        key = (reporter.attempt_id,)
        return {
            "points": ask("SELECT * FROM points WHERE attempt_id=? ORDER BY step", key).fetchall(),
            "rollups": ask(
                "SELECT * FROM rollups WHERE attempt_id=? ORDER BY size, bin", key
            ).fetchall(),
            "counters": sorted(ask("SELECT * FROM counters").fetchall()),
            "cursor": (row.execution.outbox_seq, row.execution.outbox_offset),
            "events": ask("SELECT kind, message FROM events ORDER BY id").fetchall(),
            "run": (run.step, run.tokens_seen, run.progress, run.totals, run.sparkline),
        }


def _write(reporter: Reporter, steps: int = 40) -> None:
    reporter.begin()
    reporter.steps(0, steps // 2)
    reporter.save(steps // 2)
    reporter.say(
        events.EvaluationResult(
            evaluation="bpb", step=steps // 2, value=1.5, identity="x", settings={}, result={},
            seconds=3.0, checkpoint=None,
        )
    )  # fmt: skip
    reporter.say(events.SampleResult(step=steps // 2, prompt="a", text="b"))
    reporter.steps(steps // 2, steps)
    reporter.end("completed", steps, Reason.finished)


# --- what records do -----------------------------------------------------------------------------


def test_a_whole_attempt_becomes_rows(db: Database, settings: Settings) -> None:
    run_id = create(db, steps=40)
    reporter = attempt(db, settings, run_id)
    _write(reporter)
    assert reporter.ingest().problem is None
    with db.read() as session:
        run = run_views.get_run(session, "demo")
        assert (run.step, run.tokens_seen) == (40, 40 * BATCH_TOKENS)
        phase = history.phases(session, run)[0]
        assert phase.ended_at_step == 40
        row = session.get_one(tables.Attempt, reporter.attempt_id)
        assert (row.outcome, row.reason, row.last_step, row.steps_done) == (
            "completed", "finished", 39, 40,
        )  # fmt: skip
        assert row.pid == 4242
        saved = history.checkpoints(session, run)[0]
        assert (saved.step, saved.val_bpb, saved.newest, saved.best) == (20, 1.5, True, True)
        assert history.evaluations(session, run)[0].value == 1.5
        assert history.samples(session, run)[0].text == "b"
        assert counters.read(session) == {
            "steps_processed_total": [("demo", "", 40.0)],
            "tokens_processed_total": [("demo", "", 40.0 * BATCH_TOKENS)],
            "energy_joules_total": [("demo", "", 80.0)],
            "checkpoint_bytes_total": [("demo", "", 1000.0)],
        }
        seen = counters.histograms(session, ["demo"])[counters.STEP_SECONDS]["demo"]
        assert (seen.count, seen.sum, seen.buckets[-1]) == (40, 20.0, ("+Inf", 40))


def test_the_first_step_makes_a_starting_run_running(db: Database, settings: Settings) -> None:
    reporter = attempt(db, settings, create(db))
    with db.write() as session:
        session.get_one(tables.Run, reporter.run_id).state = "starting"
    reporter.begin()
    reporter.ingest()
    with db.read() as session:
        assert session.get_one(tables.Run, reporter.run_id).state == "starting"
    reporter.steps(0, 1)
    reporter.ingest()
    with db.read() as session:
        run = session.get_one(tables.Run, reporter.run_id)
        assert run.state == "running"
        assert run.started_at is not None


def test_progress_shows_the_last_step_and_a_smoothed_rate(db: Database, settings: Settings) -> None:
    reporter = attempt(db, settings, create(db, steps=1000))
    with db.write() as session:
        session.get_one(tables.Run, reporter.run_id).state = "starting"
    reporter.begin()
    reporter.say(step(0, seconds=60.0))  # the first step compiles: it must not count
    reporter.steps(1, 30, vram_reserved_bytes=7, power_watts=None)
    reporter.ingest()
    with db.read() as session:
        run = run_views.get_run(session, "demo")
        shown = eta.progress(session, run, now=5000.0)
    assert shown.step == 30
    assert shown.step_seconds == pytest.approx(0.5)
    assert shown.tokens_per_second == pytest.approx(BATCH_TOKENS / 0.5)
    assert shown.mfu == pytest.approx(
        BATCH_TOKENS / 0.5 * run.plan["horizon"]["flops_per_token"] / 1e12
    )
    assert shown.mfu_causal is not None
    assert shown.mfu is not None
    assert shown.mfu_causal < shown.mfu
    assert shown.peak_flops is not None
    assert shown.peak_flops.source == "a test"
    assert shown.vram_bytes.reserved == 7
    assert shown.power_watts is None
    assert shown.eta_parts is not None
    assert shown.eta_parts.training == pytest.approx(970 * 0.5)
    assert shown.eta_source is not None
    assert "this attempt" in shown.eta_source
    assert shown.finish_at == pytest.approx(5000.0 + (shown.eta_seconds or 0))


def test_the_eta_comes_from_what_the_device_did_before(db: Database, settings: Settings) -> None:
    first = attempt(db, settings, create(db, "first"))
    first.begin()
    first.steps(0, 30)
    first.save(30)
    first.ingest()
    second = attempt(db, settings, create(db, "second"))
    second.begin()
    second.ingest()
    with db.read() as session:
        shown = eta.progress(session, run_views.get_run(session, "second"))
    assert shown.eta_source == "measured on a processor in run first over 30 steps"
    assert shown.eta_parts is not None
    assert shown.eta_parts.training == pytest.approx(200 * 0.5)


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf, None])
def test_f33_a_loss_that_is_no_number_is_null_everywhere(
    db: Database, settings: Settings, loss: float | None
) -> None:
    reporter = attempt(db, settings, create(db))
    reporter.begin()
    reporter.steps(0, 4)
    reporter.say(step(4, loss=None if loss is None or not math.isfinite(loss) else loss))
    reporter.ingest()
    with db.read() as session:
        run = run_views.get_run(session, "demo")
        answer = curves.metrics(session, run, ["loss"])
        assert answer.series[0].points[-1][2:] == (None, None, None)
        json.dumps(eta.progress(session, run).model_dump(mode="json"), allow_nan=False)
        json.dumps(answer.model_dump(mode="json"), allow_nan=False)


def test_a_raw_nan_in_a_journal_becomes_null(db: Database, settings: Settings) -> None:
    reporter = attempt(db, settings, create(db))
    reporter.begin()
    _append_raw(reporter, step(0).model_dump(mode="json") | {"loss": math.nan})
    _append_raw(reporter, step(1).model_dump(mode="json") | {"grad_norm": math.inf})
    assert reporter.ingest().problem is None
    with db.read() as session:
        rows = session.scalars(select(tables.Point).order_by(tables.Point.step)).all()
        assert (rows[0].loss, rows[1].grad_norm) == (None, None)


def _append_raw(reporter: Reporter, record: dict[str, Any]) -> None:
    """A record with a right CRC that our own writer would refuse to write."""
    import time
    import zlib

    batch = reporter.outbox.read_bytes().count(b"\n") - 1
    body = json.dumps({"seq": batch, "ts": time.time(), **record})
    crc = zlib.crc32(body.encode())
    with reporter.outbox.open("ab") as file:
        file.write(f'{body[:-1]},"crc":"{crc:08x}"}}\n'.encode())


@pytest.mark.parametrize(
    "record",
    [
        {"kind": "from_the_future", "value": 1},
        {"kind": "step", "step": "x"},
        {"kind": "notice", "level": "info", "code": "x", "message": "m", "step": 2**70},
        {"kind": "evaluation", "value": None},
    ],
)
def test_f14_a_record_we_do_not_know_is_passed_over_and_said(
    db: Database, settings: Settings, record: dict[str, Any]
) -> None:
    reporter = attempt(db, settings, create(db))
    reporter.begin()
    _append_raw(reporter, record)
    for number in range(3):
        _append_raw(reporter, step(number).model_dump(mode="json"))
    assert reporter.ingest().problem is None
    with db.read() as session:
        assert run_views.get_run(session, "demo").step == 3
        gaps = [
            e for e in event_views.events(session, reporter.run_id).data if e.kind == "report_gap"
        ]
        assert len(gaps) == (0 if record["kind"] == "notice" else 1)


def test_lone_surrogates_and_control_bytes_are_kept_as_data(
    db: Database, settings: Settings
) -> None:
    reporter = attempt(db, settings, create(db))
    reporter.begin()
    text = "a\ud800b\x00\x1b[2J"
    _append_raw(
        reporter, events.SampleResult(step=1, prompt="p", text="t").model_dump() | {"text": text}
    )
    assert reporter.ingest().problem is None
    with db.read() as session:
        assert (
            history.samples(session, run_views.get_run(session, "demo"))[0].text == "a?b\x00\x1b[2J"
        )


def test_f40_a_clock_that_goes_back_changes_no_order(
    db: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    reporter = attempt(db, settings, create(db))
    times = iter([100.0, 99.0, 50.0, 10.0, 5.0, 4.0, 3.0])
    monkeypatch.setattr("trainer.contract.journal.time.time", lambda: next(times))
    reporter.begin()
    reporter.steps(0, 5)
    monkeypatch.undo()
    reporter.ingest()
    with db.read() as session:
        run = run_views.get_run(session, "demo")
        assert run.step == 5
        points = curves.metrics(session, run, ["loss"]).series[0].points
        assert [p[0] for p in points] == [0, 1, 2, 3, 4]
        assert run.progress["step_seconds"] == pytest.approx(0.5)


def test_a_disk_that_is_full_is_a_reason_until_the_next_step(
    db: Database, settings: Settings
) -> None:
    reporter = attempt(db, settings, create(db))
    with db.write() as session:
        session.get_one(tables.Run, reporter.run_id).state = "running"
    reporter.begin()
    reporter.steps(0, 2)
    reporter.say(events.Notice(level="error", code="disk_full", message="no room, waiting"))
    reporter.ingest()
    with db.read() as session:
        run = session.get_one(tables.Run, reporter.run_id)
        assert (run.state, run.reason, run.reason_message) == (
            "running", "disk_full", "no room, waiting",
        )  # fmt: skip
    reporter.steps(2, 3)
    reporter.ingest()
    with db.read() as session:
        run = session.get_one(tables.Run, reporter.run_id)
        assert (run.reason, run.reason_message) == ("requested", "Training.")


# --- exactly once --------------------------------------------------------------------------------


def test_reading_twice_is_reading_once(db: Database, settings: Settings) -> None:
    reporter = attempt(db, settings, create(db, steps=40))
    _write(reporter)
    reporter.ingest()
    once = _state(db, reporter)
    for _ in range(3):
        assert reporter.ingest().applied == 0
    assert _state(db, reporter) == once


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_any_batch_size_gives_the_same_rows(db: Database, settings: Settings, size: int) -> None:
    reporter = attempt(db, settings, create(db, steps=40))
    _write(reporter)
    while ingest.ingest(db, reporter.execution_id, settings.paths, size).applied:
        pass
    state = _state(db, reporter)
    with db.read() as session:
        points = [row[1:] for row in state["points"]]
        assert [p[0] for p in points] == list(range(40))
        run = run_views.get_run(session, "demo")
        answer = curves.metrics(session, run, ["loss"], max_points=10)
        assert answer.bin_steps == 4
        want = [3.0 - (4 * i + 1.5) / 1000 for i in range(10)]
        assert [p[2] for p in answer.series[0].points] == pytest.approx(want)
    assert [c[3] for c in state["counters"] if c[0] == "steps_processed_total"] == [40.0]


def test_two_readers_of_one_journal_apply_it_once(db: Database, settings: Settings) -> None:
    import threading

    reporter = attempt(db, settings, create(db, steps=400))
    reporter.begin()
    reporter.steps(0, 400)

    def read() -> None:
        for _ in range(200):
            if not ingest.ingest(db, reporter.execution_id, settings.paths, 7).more:
                return

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    reporter.ingest()
    with db.read() as session:
        assert counters.read(session)["steps_processed_total"] == [("demo", "", 400.0)]
        assert session.query(tables.Point).count() == 400


_CHILD = """
import sys
from server.ingestion import ingest
from server.database.db import Database
from server.settings import Settings
settings = Settings(data_dir=sys.argv[1])
db = Database.open(settings)
while ingest.ingest(db, int(sys.argv[2]), settings.paths, 9).applied:
    pass
"""


@pytest.mark.parametrize("place", ["ingest.rows", "ingest.cursor", "db.commit", "ingest.committed"])
def test_f06_a_kill_inside_ingestion_neither_loses_nor_doubles(
    settings: Settings, place: str
) -> None:
    db = Database.open(settings)
    reporter = attempt(db, settings, create(db, steps=40))
    _write(reporter)
    db.close()
    arguments = [sys.executable, "-c", _CHILD, str(settings.data_dir), str(reporter.attempt_id)]
    kills = 0
    for passes in (0, 1, 2):
        environment = {**os.environ, "TRAIND_FAIL": f"{place}={passes}*off->1*kill"}
        kills += subprocess.run(arguments, env=environment, check=False).returncode == -9
    assert kills == 3
    db = Database.open(settings)
    reporter.db = db
    reporter.ingest()
    state = _state(db, reporter)
    assert [row[1] for row in state["points"]] == list(range(40))
    assert [c[3] for c in state["counters"] if c[0] == "steps_processed_total"] == [40.0]
    assert sum(kind == "ended" for kind, _ in state["events"]) == 1
    assert state["cursor"][1] == reporter.outbox.stat().st_size
    assert db.integrity_check() == []
    db.close()


# --- damage --------------------------------------------------------------------------------------


def _copy_to(reporter: Reporter, raw: bytes) -> None:
    """Replace what the journal holds, in place: the inode stays."""
    with reporter.outbox.open("r+b") as file:
        file.write(raw)
        file.truncate()


def _forget(db: Database, reporter: Reporter) -> None:
    """Back to before anything was read."""
    with db.write() as session:
        ask = session.connection().exec_driver_sql
        for table in ("points", "rollups", "events", "checkpoints", "evaluations", "samples"):
            ask(f"DELETE FROM {table}")
        row = session.get_one(tables.Attempt, reporter.attempt_id)
        row.execution.outbox_seq = row.execution.outbox_offset = 0
        row.execution.outbox_inode = row.outbox_problem = row.last_step = None
        row.outcome = row.reason = None
        phase = session.scalars(select(tables.Phase)).one()
        phase.ended_at_step = None


def _valid_prefix(raw: bytes) -> int:
    """How many whole records `raw` begins with, the header not counted."""
    return max(0, raw.count(b"\n") - 1)


def test_f22_a_journal_cut_at_any_byte_gives_its_prefix_and_waits(
    db: Database, settings: Settings
) -> None:
    """The parser at each byte; the database at the ends of records and a few places between."""
    reporter = attempt(db, settings, create(db, steps=40))
    _write(reporter, 26)
    raw = reporter.outbox.read_bytes()
    ends = [i + 1 for i, byte in enumerate(raw) if byte == 10]
    rng = random.Random(22)
    deep = {cut + off for cut in rng.sample(ends, 5) for off in (-1, 0, 1)}
    deep |= {rng.randrange(len(raw)) for _ in range(15)}
    for cut in range(len(raw) + 1):
        batch = JournalReader(reporter.outbox)._parse(raw[:cut], 0, 0)
        assert len(batch.records) == _valid_prefix(raw[:cut]), cut
        assert batch.problem is None, cut
        if cut in deep:
            _cut_and_complete(db, reporter, raw, cut)
    assert db.integrity_check() == []


def _cut_and_complete(db: Database, reporter: Reporter, raw: bytes, cut: int) -> None:
    """A torn tail gives the records before it; when the rest arrives, each comes exactly once."""
    _copy_to(reporter, raw[:cut])
    first = reporter.ingest()
    assert (first.problem, first.applied) == (None, _valid_prefix(raw[:cut])), cut
    _copy_to(reporter, raw)
    assert first.applied + reporter.ingest().applied == _valid_prefix(raw), cut
    with db.read() as session:
        steps = session.scalars(select(tables.Point.step).order_by(tables.Point.step)).all()
        assert steps == list(range(26)), cut
    _forget(db, reporter)


def test_f23_every_flipped_bit_is_found_and_what_came_before_it_kept(
    db: Database, settings: Settings
) -> None:
    """The parser against each bit of 10 kB; a few flips also through the database."""
    reporter = attempt(db, settings, create(db, steps=40))
    _write(reporter, 26)
    raw = reporter.outbox.read_bytes()
    assert 8_000 < len(raw) < 14_000
    ends = [i for i, byte in enumerate(raw) if byte == 10]
    begins = [0, *(end + 1 for end in ends)]
    rng = random.Random(23)
    deep = set(rng.sample(range(8 * len(raw)), 25)) | {8 * ends[-1] + 3, 8 * ends[3] + 1}
    for bit in range(8 * len(raw)):
        line = bisect_right(begins, bit // 8) - 1  # 0 is the header; record n is line n + 1
        waits = bit // 8 == ends[-1]  # its newline is gone: it looks like one still being written
        start, until = begins[line], begins[min(line + 3, len(ends))]
        part = bytearray(raw[start:until])
        part[bit // 8 - start] ^= 1 << (bit % 8)
        batch = JournalReader(reporter.outbox)._parse(bytes(part), start, max(0, line - 1))
        assert batch.records == [], bit
        assert (batch.problem is None) == waits, bit
        if bit in deep:
            _flip_and_read(db, reporter, raw, bit, max(0, line - 1), waits)


def _flip_and_read(
    db: Database, reporter: Reporter, raw: bytes, bit: int, whole: int, waits: bool
) -> None:
    damaged = bytearray(raw)
    damaged[bit // 8] ^= 1 << (bit % 8)
    _copy_to(reporter, bytes(damaged))
    result = reporter.ingest()
    assert (result.applied, result.problem is None) == (whole, waits), bit
    assert reporter.outbox.read_bytes() == bytes(damaged)
    _forget(db, reporter)


def test_f23_damage_is_said_once_and_stops_this_run_only(db: Database, settings: Settings) -> None:
    reporter = attempt(db, settings, create(db, "hurt"))
    other = attempt(db, settings, create(db, "well"))
    for one in (reporter, other):
        one.begin()
        one.steps(0, 10)
    raw = bytearray(reporter.outbox.read_bytes())
    raw[-100] ^= 4
    _copy_to(reporter, bytes(raw))
    for _ in range(3):
        assert "damaged record" in (reporter.ingest().problem or "")
    assert other.ingest().problem is None
    with db.read() as session:
        hurt = run_views.get_run(session, "hurt")
        assert run_views.get_run(session, "well").step == 10
        assert hurt.step == 9
        said = [e for e in event_views.events(session, hurt.id).data if e.kind == "report_gap"]
        assert [e.level for e in said] == ["error"]
        assert history.attempts(session, hurt)[0].report_gap is not None


@pytest.mark.parametrize("how", ["rm", "mv", "truncate"])
def test_f24_a_journal_that_is_not_the_same_file_any_more_is_a_loud_stop(
    db: Database, settings: Settings, how: str
) -> None:
    reporter = attempt(db, settings, create(db))
    reporter.begin()
    reporter.steps(0, 10)
    reporter.ingest()
    before = _state(db, reporter)
    path = reporter.outbox
    if how == "rm":
        path.unlink()
    elif how == "mv":
        other = path.with_name("other")
        other.write_bytes(path.read_bytes().replace(b'"attempt":1', b'"attempt":2'))
        os.replace(other, path)
    else:
        os.truncate(path, 300)
    assert reporter.ingest().problem is not None
    after = _state(db, reporter)
    assert after["points"] == before["points"]
    assert after["cursor"] == before["cursor"]
    assert after["events"][-1][0] == "report_gap"


def test_f16_a_journal_of_somebody_else_is_not_believed(db: Database, settings: Settings) -> None:
    reporter = attempt(db, settings, create(db))
    reporter.outbox.unlink()
    writer = Writer.create(
        reporter.outbox, JournalHeader(reporter.run_id, reporter.number, "forged")
    )
    writer.append(step(0).model_dump(mode="json"))
    assert "belongs to" in (reporter.ingest().problem or "")
    with db.read() as session:
        assert session.query(tables.Point).count() == 0


def test_an_outbox_that_is_not_there_yet_is_waited_for(db: Database, settings: Settings) -> None:
    reporter = attempt(db, settings, create(db))
    reporter.outbox.unlink()
    assert reporter.ingest() == ingest.IngestResult(0, False, None)


# --- jobs ----------------------------------------------------------------------------------------


def test_a_job_reports_through_the_same_kind_of_journal(db: Database, settings: Settings) -> None:
    run_id = create(db)
    with db.write() as session:
        session.add(
            rows.job(
                id="job_1", run_id=run_id, kind="sample", state="running", params={}, token="t",
                created_at=1.0,
            )
        )  # fmt: skip
    directory = settings.paths.job("job_1")
    directory.mkdir(parents=True)
    writer = Writer.create(directory / "outbox.jsonl", JournalHeader("job_1", 0, "t"))

    def say(event: events.TrainerEvent) -> None:
        writer.append(event.model_dump(mode="json"))

    say(events.Stage(stage="sampling", fraction=0.5, detail="2 of 4"))
    with db.read() as session:
        execution_id = session.get_one(tables.Job, "job_1").execution_id
    ingest.ingest(db, execution_id, settings.paths)
    with db.read() as session:
        job = session.get_one(tables.Job, "job_1")
        assert (job.stage, job.stage_fraction, job.stage_detail) == ("sampling", 0.5, "2 of 4")
    say(events.SampleResult(step=3, prompt="p", text="t"))
    say(events.Ended(outcome="completed", reason=Reason.finished, result={"samples": 1}))
    for _ in range(2):
        ingest.ingest(db, execution_id, settings.paths)
    with db.read() as session:
        job = session.get_one(tables.Job, "job_1")
        assert (job.result, job.stage_fraction) == ({"samples": 1}, 1.0)
        assert len(history.samples(session, run_views.get_run(session, "demo"))) == 1
        view = job_views.job(session, job)
        assert view.run == "demo"


# --- curves --------------------------------------------------------------------------------------


def test_a_spike_of_one_step_is_seen_at_every_zoom(db: Database, settings: Settings) -> None:
    reporter = attempt(db, settings, create(db, steps=5000))
    reporter.begin()
    for number in range(5000):
        reporter.say(step(number, loss=99.0 if number == 3217 else 1.0))
    reporter.ingest()
    with db.read() as session:
        run = run_views.get_run(session, "demo")
        for max_points in (1, 2, 10, 100, 1000, 5000):
            answer = curves.metrics(session, run, ["loss"], max_points=max_points)
            points = answer.series[0].points
            assert len(points) <= max_points
            assert max(p[4] or 0 for p in points) == 99.0
            assert min(p[3] or 9 for p in points) == 1.0
            assert answer.raw_points == 5000
        one = curves.metrics(session, run, ["loss"], max_points=1).series[0].points[0]
        assert one[0] == 4999
        assert one[2] == pytest.approx((4999 + 99) / 5000)


@pytest.mark.parametrize("seed", range(5))
def test_binned_ranges_equal_the_points_they_stand_for(
    db: Database, settings: Settings, seed: int
) -> None:
    rng = random.Random(seed)
    reporter = attempt(db, settings, create(db, steps=2000))
    start = rng.randrange(50)
    reporter.begin(start)
    losses: dict[int, float | None] = {}
    for number in range(start, 1500):
        losses[number] = None if rng.random() < 0.05 else rng.random()
        reporter.say(step(number, loss=losses[number]))
    reporter.ingest()
    with db.read() as session:
        run = run_views.get_run(session, "demo")
        for _ in range(30):
            low, high = sorted((rng.randrange(1600), rng.randrange(1600)))
            answer = curves.metrics(session, run, ["loss"], low, high, rng.randrange(1, 400))
            for at, _, mean, least, most in answer.series[0].points:
                first = max(low, at // answer.bin_steps * answer.bin_steps)
                inside = [v for s, v in losses.items() if first <= s <= at and v is not None]
                if inside:
                    assert mean == pytest.approx(sum(inside) / len(inside))
                    assert (least, most) == (min(inside), max(inside))
                else:
                    assert mean is None
            assert answer.raw_points == sum(low <= s < high for s in losses)


def test_cover_tiles_any_range() -> None:
    rng = random.Random(1)
    for _ in range(2000):
        low = rng.randrange(100_000)
        high = low + rng.randrange(100_000)
        size = 2 ** rng.randrange(18)
        pieces = rollups.cover(low, high, size)
        at = low
        for piece in pieces:
            assert piece.low * piece.size == at
            assert piece.size <= size
            at = piece.high * piece.size
        assert at == high or not pieces
        assert len(pieces) <= 24
