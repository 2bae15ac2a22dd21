"""F46 in small: what is read does not grow with what is stored. Counts work, not seconds."""

from __future__ import annotations

import re
import time

import pytest
from sqlalchemy import event, text

from server.database import tables
from server.database.db import Database
from server.machine.devices import Device
from server.metrics import rollups
from server.queries import curves, run_views
from server.settings import Settings
from server.supervision import worklist
from server.supervision.context import SupervisorContext
from server.supervision.supervisor import Supervisor
from tests.bench import history
from tests.server.machine_world import World
from tests.server.reporting import attempt, create

STEPS = 40_000


def _statements(db: Database) -> list[str]:
    seen: list[str] = []
    event.listen(
        db._reader, "before_cursor_execute", lambda *given: seen.append(given[2]), named=False
    )
    return seen


def test_f46_a_long_curve_is_read_from_few_rows(db: Database, settings: Settings) -> None:
    reporter = attempt(db, settings, create(db, steps=STEPS))
    with db.write() as session:
        points = [
            (s, float(s), (float(s), *[None] * (len(rollups.KEYS) - 1))) for s in range(STEPS)
        ]
        rollups.add(session.connection(), reporter.attempt_id, points)
        row = session.get_one(tables.Attempt, reporter.attempt_id)
        row.start_step, row.last_step = 0, STEPS - 1
        session.get_one(tables.Run, reporter.run_id).step = STEPS
    with db.read() as session:
        run = run_views.get_run(session, "demo")
        for wanted in (100, 500, 1000):
            size = rollups.bin_steps_for(0, STEPS, wanted)
            read = list(
                rollups.read(session.connection(), reporter.attempt_id, 0, STEPS, size, ["loss"])
            )
            assert len(read) <= 2 * wanted
            answer = curves.metrics(session, run, ["loss"], max_points=wanted)
            means = [p[2] or 0.0 for p in answer.series[0].points]
            assert wanted / 2 <= len(means) <= wanted
            assert means == sorted(means)


def test_the_benchmarks_history_is_what_ingest_would_have_written(db: Database) -> None:
    history.build(db, num_runs=2, num_steps=1_500)
    with db.read() as session:
        told, copied = (run_views.get_run(session, name) for name in ("run-0", "run-1"))
        assert (copied.state, copied.step, copied.tokens_seen) == (
            "paused",
            1_500,
            told.tokens_seen,
        )
        for points in (100, 1_500):
            ours, theirs = (
                curves.metrics(session, r, ["loss", "mfu"], max_points=points)
                for r in (told, copied)
            )
            assert ours.series[0].points == theirs.series[0].points
            assert ours.series[1].points == theirs.series[1].points
            assert points / 2 <= len(ours.series[0].points) <= points


def test_f46_a_page_of_runs_is_a_few_queries_whatever_there_is(db: Database) -> None:
    for i in range(60):
        create(db, f"run{i}")
    seen = _statements(db)
    with db.read() as session:
        page = run_views.list_runs(session, limit=50)
    assert len(page.data) == 50
    assert len([s for s in seen if s.startswith("SELECT")]) <= 4
    whole_plan = re.compile(r'runs\."?plan"?(?!"?, \?)')  # numbers may be extracted from it
    assert not any(whole_plan.search(s.split("FROM")[0]) for s in seen)


@pytest.mark.no_cover  # it measures time, which tracing adds to
def test_f46_a_tick_does_not_grow_with_the_queue(db: Database, settings: Settings) -> None:
    """10,000 runs wait behind one that trains. Processor time: a busy machine is no fault."""
    head, following = create(db, "head"), create(db, "queued")
    for prepared in (head, following, *(f"{n:026d}" for n in range(1, worklist.HEADS + 1))):
        data = settings.paths.run(prepared).data
        data.parent.mkdir(parents=True)
        data.write_text("{}")
    with db.write() as session:
        columns = [str(c.name) for c in tables.Run.__table__.columns]
        own = {"id": "printf('%026d', n)", "name": "'q-' || n", "queue_position": "100 + n"}
        session.execute(
            text(
                "WITH RECURSIVE ns(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM ns WHERE n < 9999) "
                f"INSERT INTO runs ({', '.join(columns)}) "
                f"SELECT {', '.join(own.get(c, c) for c in columns)} FROM runs, ns "
                "WHERE name = 'queued'"
            )
        )
    with World() as world:
        supervisor = Supervisor(
            SupervisorContext(db, settings, (Device("cpu", "a processor"),)),
            lambda: world.monotonic,
        )
        spent = []
        for _ in range(6):
            world.monotonic += 1
            began = time.process_time()
            supervisor.tick()
            spent.append(time.process_time() - began)
        supervisor.stop()
        assert [t.order["run_id"] for t in world.trainers] == [head]
    with db.read() as session:
        waiting = session.scalar(text("SELECT count(*) FROM runs WHERE state = 'queued'"))
    assert waiting == 10_000
    assert min(spent[1:]) < 0.1, spent


def test_f46_lists_and_cursors_use_an_index(db: Database) -> None:
    asked = {
        "SELECT id FROM runs ORDER BY created_at DESC, id DESC LIMIT 9": "ix_runs_created_at",
        "SELECT id FROM runs WHERE state='queued' ORDER BY created_at DESC, id DESC LIMIT 9":
            "ix_runs_state_created_at",
        "SELECT queue_position FROM runs WHERE queue_position IS NOT NULL ORDER BY queue_position":
            "ix_runs_queue_position",
        "SELECT id FROM runs WHERE queue_position IS NOT NULL AND device='auto' AND hours='' "
        "ORDER BY queue_rank, queue_position LIMIT 4": "ix_runs_queue",
        "SELECT device, hours FROM runs WHERE queue_position IS NOT NULL AND device > 'auto' "
        "ORDER BY device, hours LIMIT 1": "ix_runs_queue",
        "SELECT * FROM events WHERE run_id='a' AND id > 5 ORDER BY id LIMIT 9": "ix_events_run_id",
        "SELECT * FROM checkpoints WHERE run_id='a' ORDER BY step DESC": "ix_checkpoints_run_step",
    }  # fmt: skip
    with db.read() as session:
        for query, index in asked.items():
            plan = session.execute(text(f"EXPLAIN QUERY PLAN {query}")).all()
            assert any(index in row[3] for row in plan), (query, plan)
            assert not any("TEMP B-TREE" in row[3] for row in plan), (query, plan)
