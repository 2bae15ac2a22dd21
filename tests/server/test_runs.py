"""The verbs: create, extend in every way, rewind, import, patch, pin, delete."""

from __future__ import annotations

import random
from typing import Any

import pydantic
import pytest

from server.database import tables
from server.database.db import Database
from server.domain import attempts, checkpoint_lookup, lineage, runs
from server.errors import Conflict, IllegalMove, Invalid, NameTaken
from server.queries import curves, eta, event_views, history, run_views
from server.queries.latest import latest
from server.schemas.runs import Overrides, PatchRun, ResumeRequest
from server.settings import Settings
from tests.server.reporting import BATCH_TOKENS, Reporter, attempt, create
from trainer.contract.extend import ExtendRequest
from trainer.contract.jobs import ImportParams, ImportResult
from trainer.contract.reasons import Reason


def _set(db: Database, run_id: str, **values: Any) -> None:
    with db.write() as session:
        run = session.get_one(tables.Run, run_id)
        for key, value in values.items():
            setattr(run, key, value)


def _extend(db: Database, run_id: str, dry_run: bool = False, **ask: Any) -> runs.ExtendOutcome:
    with db.write() as session:
        run = session.get_one(tables.Run, run_id)
        return runs.extend(session, run, ExtendRequest(**ask), 3000.0, dry_run=dry_run)


def _state(db: Database, run_id: str) -> str:
    with db.read() as session:
        return session.get_one(tables.Run, run_id).state


def _trained(
    db: Database, settings: Settings, run_id: str, low: int, high: int, outcome: str | None
) -> Reporter:
    """An attempt that did steps [low, high), saved at its end, and ended."""
    reporter = attempt(db, settings, run_id)
    reporter.begin(low)
    reporter.steps(low, high)
    reporter.save(high)
    if outcome:
        reporter.end(outcome, high)
    reporter.ingest()
    after = {"completed": "completed", "paused": "paused", None: "running"}[outcome]
    _set(db, run_id, state=after, desired_state="paused" if after == "paused" else "running")
    return reporter


def _check_tiling(db: Database, run_id: str) -> None:
    """Phases tile [0, end_step); segments tile [0, step)."""
    with db.read() as session:
        run = session.get_one(tables.Run, run_id)
        at = 0
        for phase in lineage.phases(session, run_id):
            assert phase.start_step == at
            at = lineage.phase_end(phase)
            assert at > phase.start_step
        assert at == run.end_step
        at = 0
        for stretch in lineage.stretches(session, run_id):
            assert stretch.low == at
            at = stretch.high
        assert at == run.step


def _check_standing(db: Database, run_id: str) -> None:
    """The one statement of the live view says what the lineage says."""
    with db.read() as session:
        found = latest(session, run_id)
        phases, kept = lineage.phases(session, run_id), checkpoint_lookup.usable(session, run_id)
        assert found.attempt is attempts.last_attempt(session, run_id)
        assert found.checkpoint is (kept[0] if kept else None)
        present = (p for p in phases if p.ended_at_step is None)
        assert found.phase == next(present, phases[-1]).name


# --- create --------------------------------------------------------------------------------------


def test_create_makes_run_phase_and_events(db: Database) -> None:
    run_id = create(db, steps=200)
    with db.read() as session:
        detail = run_views.detail(session, run_views.get_run(session, run_id))
        assert (detail.state, detail.queue_position, detail.end_step) == ("queued", 1, 200)
        assert history.phases(session, run_views.get_run(session, "demo"))[0].mode == "initial"
        kinds = [event.kind for event in event_views.events(session, run_id).data]
        assert kinds == ["created", "state"]
        assert detail.directory.endswith(f"runs/{run_id}")


def test_a_name_is_taken_once_and_free_after_delete(db: Database) -> None:
    run_id = create(db, start=False)
    with pytest.raises(NameTaken):
        create(db)
    with db.write() as session:
        path = runs.delete(session, session.get_one(tables.Run, run_id), 9.0)
    assert str(path) == f"runs/{run_id}"
    assert create(db) != run_id


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ({"name": "a", "nonsense": 1}, pydantic.ValidationError),
        ({"name": "run_x"}, pydantic.ValidationError),
        ({"name": "a", "horizon": {"tokens": 1}}, Invalid),
    ],
)
def test_nothing_is_half_created(
    db: Database, body: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error), db.write() as session:
        runs.create(session, body, now=1.0)
    with db.read() as session:
        assert session.query(tables.Run).count() == session.query(tables.Event).count() == 0


def test_delete_takes_every_row_with_it(db: Database, settings: Settings) -> None:
    run_id = create(db)
    _trained(db, settings, run_id, 0, 20, "paused")
    with db.write() as session:
        runs.delete(session, session.get_one(tables.Run, run_id), 9.0)
    with db.read() as session:
        ask = session.connection().exec_driver_sql
        for table in ("runs", "phases", "attempts", "points", "rollups", "checkpoints"):
            assert ask(f"SELECT count(*) FROM {table}").scalar() == 0, table
        assert [e.kind for e in event_views.events(session).data] == ["deleted"]


def test_patch_changes_cadences_and_tells_a_running_trainer(db: Database) -> None:
    run_id = create(db)
    _set(db, run_id, state="running")
    change = PatchRun.model_validate({"title": "T", "evaluate": {"bpb_every": 7}})
    with db.write() as session:
        run = session.get_one(tables.Run, run_id)
        assert runs.patch(session, run, change, 5.0)
        assert not runs.patch(session, run, change, 6.0)
    with db.read() as session:
        run = session.get_one(tables.Run, run_id)
        assert (run.title, run.spec["evaluate"]["bpb_every"]) == ("T", 7)
        assert run.spec["evaluate"]["sample_every"] == 100
        told = session.query(tables.CommandRow).one().body
        assert (told["kind"], told["evaluate"]["bpb_every"]) == ("update", 7)
        assert told["checkpoint"] is None
    bad = PatchRun.model_validate({"evaluate": {"bpb_every": -1}})
    with pytest.raises(pydantic.ValidationError), db.write() as session:
        runs.patch(session, session.get_one(tables.Run, run_id), bad, 7.0)


def test_resume_takes_overrides_and_forgets_old_failures(db: Database) -> None:
    run_id = create(db)
    _set(db, run_id, state="failed", failures_without_progress=3, best_failed_step=9)
    ask = ResumeRequest(overrides=Overrides(device_batch_size=4))
    with db.write() as session:
        assert runs.resume(session, session.get_one(tables.Run, run_id), ask, now=5.0)
    with db.read() as session:
        run = session.get_one(tables.Run, run_id)
        assert (run.state, run.overrides, run.failures_without_progress) == (
            "queued", {"device_batch_size": 4}, 0,
        )  # fmt: skip


def test_an_override_that_would_change_the_batch_is_refused(db: Database) -> None:
    run_id = create(db)
    _set(db, run_id, state="failed")
    ask = ResumeRequest(overrides=Overrides(device_batch_size=3))
    with pytest.raises(Invalid, match="does not divide") as refused, db.write() as session:
        runs.resume(session, session.get_one(tables.Run, run_id), ask, now=5.0)
    assert refused.value.errors[0]["pointer"] == "/overrides/device_batch_size"
    with db.read() as session:
        run = session.get_one(tables.Run, run_id)
        assert (run.state, run.overrides) == ("failed", {})


def test_a_run_that_did_everything_cannot_be_resumed(db: Database, settings: Settings) -> None:
    run_id = create(db, steps=20)
    _trained(db, settings, run_id, 0, 20, "completed")
    _set(db, run_id, state="cancelled")
    with pytest.raises(IllegalMove, match="every step"), db.write() as session:
        runs.resume(session, session.get_one(tables.Run, run_id), now=5.0)


# --- extend --------------------------------------------------------------------------------------


def test_extend_a_completed_run_queues_it(db: Database, settings: Settings) -> None:
    run_id = create(db, steps=20)
    _trained(db, settings, run_id, 0, 20, "completed")
    shown = _extend(db, run_id, dry_run=True, to_step=50)
    assert not shown.changed
    assert _state(db, run_id) == "completed"
    done = _extend(db, run_id, to_step=50)
    assert done.preview == shown.preview
    assert _state(db, run_id) == "queued"
    assert not _extend(db, run_id, to_step=50).changed
    assert _extend(db, run_id, add_steps=10).preview.end_step == 60  # type: ignore[union-attr]
    _check_tiling(db, run_id)


def test_an_extend_without_start_waits_paused(db: Database, settings: Settings) -> None:
    run_id = create(db, steps=20)
    _trained(db, settings, run_id, 0, 20, "completed")
    _extend(db, run_id, to_step=50, start=False)
    assert _state(db, run_id) == "paused"
    _extend(db, run_id, to_step=60)
    assert _state(db, run_id) == "paused"
    _extend(db, run_id, to_step=60, start=True)
    assert _state(db, run_id) == "queued"


@pytest.mark.parametrize(
    "ask",
    [
        {"to_step": 10}, {"to_step": 20}, {"to_step": 199}, {"to_step": 19, "at": "now"},
        {"add_tokens": 1}, {"to_step": 300, "from_checkpoint": "step-000000099-a0001"},
        {"to_step": 20, "from_checkpoint": "20"}, {"add_steps": 10**9},
    ],
)  # fmt: skip
def test_an_extend_that_cannot_be_meant_changes_nothing(
    db: Database, settings: Settings, ask: dict[str, Any]
) -> None:
    run_id = create(db, steps=200)
    _trained(db, settings, run_id, 0, 20, "paused")
    with pytest.raises(Invalid) as caught:
        _extend(db, run_id, **ask)
    assert caught.value.errors[0]["pointer"].startswith("/")
    with db.read() as session:
        assert session.query(tables.Phase).count() == 1
    _check_tiling(db, run_id)


def test_several_extends_at_the_end_of_a_running_run_chain(
    db: Database, settings: Settings
) -> None:
    run_id = create(db, steps=20)
    reporter = _trained(db, settings, run_id, 0, 10, None)
    for end in (40, 60, 80):
        assert _extend(db, run_id, to_step=end).changed
    assert _state(db, run_id) == "running"
    reporter.steps(10, 20)
    reporter.end("completed", 20, Reason.finished)
    reporter.ingest()
    with db.read() as session:
        phase = attempts.current_phase(session, session.get_one(tables.Run, run_id))
        assert phase is not None
        assert (phase.index, phase.start_step, phase.end_step) == (1, 20, 40)
    _check_tiling(db, run_id)


def test_extend_now_ends_the_phase_where_the_trainer_really_stands(
    db: Database, settings: Settings
) -> None:
    run_id = create(db, steps=200)
    reporter = _trained(db, settings, run_id, 0, 10, None)
    assert _extend(db, run_id, to_step=100, at="now", schedule={"mode": "hold"}).changed
    assert not _extend(db, run_id, to_step=100, at="now", schedule={"mode": "hold"}).changed
    with pytest.raises(Conflict):
        _extend(db, run_id, to_step=300)
    with db.read() as session:
        told = session.query(tables.CommandRow).one()
        assert told.body["kind"] == "end_phase"
        assert session.query(tables.Phase).count() == 1
    reporter.steps(10, 13)
    reporter.save(13)
    reporter.end("phase_ended", 13)
    reporter.ingest()
    with db.read() as session:
        run = run_views.get_run(session, "demo")
        first, second = history.phases(session, run)
        assert (first.ended_at_step, first.lineage_end) == (13, 13)
        assert (second.start_step, second.end_step, second.mode) == (13, 100, "hold")
        assert (run.pending_extend, run.end_step) == (None, 100)
    _check_tiling(db, run_id)


def test_extend_now_of_a_paused_run_needs_no_trainer(db: Database, settings: Settings) -> None:
    run_id = create(db, steps=200)
    _trained(db, settings, run_id, 0, 30, "paused")
    _extend(db, run_id, to_step=60, at="now")
    assert _state(db, run_id) == "paused"
    _check_tiling(db, run_id)
    with db.read() as session:
        assert session.get_one(tables.Run, run_id).end_step == 60


def test_an_end_phase_that_the_attempt_did_not_answer_is_told_again(
    db: Database, settings: Settings
) -> None:
    run_id = create(db, steps=200)
    _trained(db, settings, run_id, 0, 10, None)
    _extend(db, run_id, to_step=100, at="now")
    with db.write() as session:
        run = session.get_one(tables.Run, run_id)
        runs.request_pause(session, run, 5.0)  # no command: the state is the order
        for command in session.query(tables.CommandRow):
            command.delivered_at = 4.0
    attempt(db, settings, run_id)
    with db.read() as session:
        by_kind = {c.body["kind"]: c for c in session.query(tables.CommandRow)}
        assert by_kind["end_phase"].delivered_at is None
        assert set(by_kind) == {"end_phase"}


# --- rewind --------------------------------------------------------------------------------------


def test_a_rewind_sets_aside_everything_beyond_the_checkpoint(
    db: Database, settings: Settings
) -> None:
    run_id = create(db, steps=40)
    reporter = attempt(db, settings, run_id)
    reporter.begin()
    reporter.steps(0, 20)
    middle = reporter.save(20)
    reporter.steps(20, 40)
    last = reporter.save(40)
    reporter.end("completed", 40, Reason.finished)
    reporter.ingest()
    _set(db, run_id, state="completed", desired_state="running")
    outcome = _extend(db, run_id, to_step=100, from_checkpoint=middle)
    assert outcome.preview is not None
    assert outcome.preview.discarded_steps == 20
    _check_tiling(db, run_id)
    with db.read() as session:
        run = run_views.get_run(session, "demo")
        assert (run.step, run.tokens_seen, run.end_step) == (20, 20 * BATCH_TOKENS, 100)
        assert [c.name for c in history.checkpoints(session, run)] == [middle]
        every = history.checkpoints(session, run, superseded=True)
        assert [(c.name, c.superseded) for c in every] == [(last, True), (middle, False)]
        curve = curves.metrics(session, run, ["loss"])
        assert curve.series[0].points[-1][0] == 19
        whole = curves.metrics(session, run, ["loss"], superseded=True)
        assert whole.series[0].points[-1][0] == 39
        assert history.attempts(session, run)[0].steps_lost == 20
    _set(db, run_id, state="paused")
    with pytest.raises(Invalid, match="current lineage"):
        _extend(db, run_id, to_step=200, from_checkpoint=last)
    _set(db, run_id, state="queued")
    second = attempt(db, settings, run_id)
    with db.read() as session:
        run = run_views.get_run(session, "demo")
        order = attempts.build_order(
            session, run, session.get_one(tables.Attempt, second.attempt_id), settings
        )
    assert order.from_checkpoint == middle
    assert (order.first_step_of_phase, order.end_step) == (20, 100)
    assert order.lineage.holds(1, 20)
    assert not order.lineage.holds(1, 40)
    assert order.lineage.holds(2, 90)
    assert [s.start_step for s in order.earlier_schedules] == [0]
    assert order.resume_expected


def test_a_rewind_needs_a_run_that_stands_still(db: Database, settings: Settings) -> None:
    run_id = create(db, steps=40)
    _trained(db, settings, run_id, 0, 20, None)
    with pytest.raises(IllegalMove):
        _extend(db, run_id, to_step=100, from_checkpoint="20")


def test_f01_a_crash_is_repeated_from_the_checkpoint_and_the_curve_is_one(
    db: Database, settings: Settings
) -> None:
    run_id = create(db, steps=100)
    first = attempt(db, settings, run_id)
    first.begin()
    first.steps(0, 30, loss=1.0)
    first.save(20)
    first.steps(30, 35, loss=9.0)
    first.ingest()
    second = attempt(db, settings, run_id)
    second.begin(20, "step-000000020-a0001")
    second.steps(20, 50, loss=2.0)
    second.ingest()
    first.steps(35, 37, loss=9.0)  # last words that were read late
    first.ingest()
    _check_tiling(db, run_id)
    with db.read() as session:
        run = run_views.get_run(session, "demo")
        points = curves.metrics(session, run, ["loss"]).series[0].points
        assert [p[0] for p in points] == list(range(50))
        assert [p[2] for p in points] == [1.0] * 20 + [2.0] * 30
        for max_points in (1, 3, 7, 20):
            zoomed = curves.metrics(session, run, ["loss"], max_points=max_points)
            assert max(p[4] or 0 for p in zoomed.series[0].points) == 2.0
        listed = run_views.list_runs(session).data[0]
        assert listed.sparkline[-1] == 2.0
        assert max(v or 0 for v in listed.sparkline) == 2.0
        assert (run.step, run.tokens_seen) == (50, 50 * BATCH_TOKENS)
        assert run.totals["lost_steps"] == 17
        assert run.totals["restarts"] == 1
        from server.metrics import counters

        held = counters.read(session)
        assert held["lost_steps_total"] == [("demo", "", 17.0)]
        assert held["restarts_total"] == [("demo", "crashed", 1.0)]
        assert held["steps_processed_total"] == [("demo", "", 67.0)]


@pytest.mark.parametrize("seed", range(12))
def test_any_chain_of_extends_pauses_and_crashes_tiles_the_steps(
    db: Database, settings: Settings, seed: int
) -> None:
    rng = random.Random(seed)
    run_id = create(db, steps=30)
    for _ in range(8):
        with db.read() as session:
            run = session.get_one(tables.Run, run_id)
            phase = attempts.current_phase(session, run)
            usable = checkpoint_lookup.usable(session, run_id)
            begin, step = (usable[0].step if usable else 0), run.step
        if phase is not None:
            with db.read() as session:
                end = lineage.phase_end(phase)
            high = rng.randint(begin + 1, end) if begin < end else end
            reporter = attempt(db, settings, run_id)
            reporter.begin(begin)
            reporter.steps(begin, high)
            outcome = "completed" if high == end else rng.choice(["paused", "crash", "phase"])
            if outcome != "crash" or rng.random() < 0.3:
                reporter.save(high)
            if outcome == "phase":
                reporter.ingest()
                _set(db, run_id, state="running", desired_state="running")
                _extend(db, run_id, add_steps=rng.randint(1, 30), at="now")
                reporter.end("phase_ended", high)
            elif outcome != "crash":
                reporter.end(outcome, high)
            reporter.ingest()
            _set(db, run_id, state="paused", desired_state="paused")
            _check_tiling(db, run_id)
            _check_standing(db, run_id)
        step_limit = step + 1
        choice = rng.choice(["end", "now", "rewind", "nothing"])
        with db.read() as session:
            usable = checkpoint_lookup.usable(session, run_id)
        if choice == "end":
            _extend(db, run_id, add_steps=rng.randint(1, 40))
        elif choice == "now":
            _extend(db, run_id, add_steps=rng.randint(step_limit, step_limit + 40), at="now")
        elif choice == "rewind" and usable:
            back = rng.choice(usable)
            _extend(db, run_id, add_steps=rng.randint(1, 40), from_checkpoint=back.name)
        _check_tiling(db, run_id)
        _check_standing(db, run_id)


def test_how_long_an_evaluation_takes_is_the_last_of_its_kind_that_training_did(
    db: Database,
) -> None:
    run_id, other = create(db, "a"), create(db, "b")
    with db.read() as session:
        assert latest(session, run_id)[3:] == (None, None)
    of_run = [("bpb", 9.0, None), ("bpb", 7.0, None), ("core", 50.0, None),
              ("bpb", 0.0, None), ("bpb", 3.0, "job_1")]  # fmt: skip
    done = [*((run_id, *each) for each in of_run), (other, "bpb", 4.0, None)]
    with db.write() as session:
        for run, kind, seconds, job in done:
            session.add(
                tables.Evaluation(
                    run_id=run, kind=kind, seconds=seconds, job_id=job, step=1, value=1.0,
                    identity="", settings={}, result={}, unix_seconds=0.0,
                )
            )  # fmt: skip
    with db.read() as session:
        assert latest(session, run_id)[3:] == (7.0, 50.0)
        assert latest(session, other)[3:] == (4.0, None)


# --- import, pin ---------------------------------------------------------------------------------


def _import(db: Database) -> str:
    params = ImportParams(path="/x", tag="d4", step=60, name="mine")
    result = ImportResult.model_validate(
        {
            "spec": {"horizon": {"steps": 60}, "batch": {"tokens": 4096, "device_batch_size": 8}},
            "step": 60,
            "tokens": 60 * BATCH_TOKENS,
            "val_bpb": 1.25,
            "checkpoint": {
                "name": "step-000000060-a0000", "step": 60, "bytes": 9, "manifest_sha256": "0" * 64,
            },
            "history": {"source": "nanochat"},
        }
    )  # fmt: skip
    with db.write() as session:
        return runs.import_run(session, params, result, now=5.0).id


def test_an_imported_run_is_complete_and_extends_at_once(db: Database, settings: Settings) -> None:
    run_id = _import(db)
    with db.read() as session:
        run = run_views.get_run(session, "mine")
        assert (run.state, run.step, run.end_step) == ("completed", 60, 60)
        assert history.phases(session, run)[0].imported
        assert history.checkpoints(session, run)[0].pinned
        assert history.evaluations(session, run)[0].value == 1.25
        assert eta.progress(session, run).attempt is None
    _extend(db, run_id, to_step=120, schedule={"mode": "replan", "rewarm_steps": 0})
    reporter = attempt(db, settings, run_id)
    with db.read() as session:
        run = run_views.get_run(session, "mine")
        row = session.get_one(tables.Attempt, reporter.attempt_id)
        order = attempts.build_order(session, run, row, settings)
    assert (reporter.number, order.lineage.limits[0]) == (1, 10**9)
    assert order.recheck_bpb
    assert order.schedule.mode == "replan"
    reporter.begin(60, "step-000000060-a0000")
    reporter.steps(60, 70)
    reporter.ingest()
    with db.read() as session:
        run = run_views.get_run(session, "mine")
        assert run.step == 70
        assert run_views.list_runs(session).data[0].sparkline


def test_a_pin_is_told_to_the_trainer(db: Database, settings: Settings) -> None:
    run_id = create(db)
    _trained(db, settings, run_id, 0, 20, None)
    with db.write() as session:
        row = session.query(tables.Checkpoint).one()
        assert runs.pin(session, row, True, 5.0)
        assert not runs.pin(session, row, True, 6.0)
    with db.read() as session:
        assert session.query(tables.CommandRow).one().body["names"] == ["step-000000020-a0001"]


def test_pages_follow_each_other_without_gap_or_overlap(db: Database) -> None:
    ids = [create(db, f"run{i}") for i in range(7)]
    for order, expected in (("newest", ids[::-1]), ("oldest", ids)):
        with db.read() as session:
            expected = sorted(ids, reverse=order == "newest")  # all made at the same second
            seen, after = [], None
            while True:
                page = run_views.list_runs(session, after=after, limit=3, order=order)  # type: ignore[arg-type]
                seen += [run.id for run in page.data]
                after = page.next
                if not page.has_more:
                    break
            assert seen == expected
    with pytest.raises(Invalid), db.read() as session:
        run_views.list_runs(session, after="nonsense")


@pytest.mark.parametrize(
    ("outcome", "is_restart"),
    [
        ("crashed", True), ("failed", True), ("terminated", True), (None, True),
        ("paused", False), ("completed", False), ("phase_ended", False),
    ],
)  # fmt: skip
def test_an_attempt_after_one_that_did_not_end_in_order_is_a_restart(
    db: Database, settings: Settings, outcome: str | None, is_restart: bool
) -> None:
    from server.metrics import counters

    run_id = create(db)
    first = attempt(db, settings, run_id)
    with db.write() as session:
        session.get_one(tables.Attempt, first.attempt_id).outcome = outcome
    attempt(db, settings, run_id)
    with db.read() as session:
        assert run_views.get_run(session, run_id).totals.get("restarts", 0) == int(is_restart)
        assert bool(counters.read(session).get("restarts_total")) == is_restart
