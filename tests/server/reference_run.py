"""A database that tells the story of the reference run: 130,000 steps, a crash, 70,000 more.

Speeds and values are what is known of that run; where nothing is known (watts, task scores, the
last evaluation) they are round numbers that are easy to follow by hand.
"""

from __future__ import annotations

from sqlalchemy import insert
from sqlalchemy.orm import Session

from server.database import tables
from server.database.db import Database
from server.domain import runs
from server.metrics import rollups
from tests.server import rows
from trainer.contract import extend
from trainer.contract.plan import Plan
from trainer.contract.schedule import PhaseSchedule, lr_multiplier

BATCH = 65_536
START = 1_780_000_000.0
STEP_SECONDS = 2549.86 * 60 / 130_000  # phase 1 took 2,549.86 minutes of training
WATTS = 200.0
DOWN = 1800.0
CRASHED_AT, RESUMED_AT, END_ONE, END_TWO = 87_500, 87_000, 130_000, 200_000
PAUSE = 15 * 3600.0
DEVICE = "NVIDIA GeForce RTX 4070"
CORE_ONE = {"hellaswag": 0.36, "winograd": 0.62, "piqa": 0.66, "boolq": 0.55, "copa": 0.65}


def create(db: Database) -> str:
    """The id of the finished run."""
    body = {"name": "rtx4070-d12", "preset": "rtx4070-d12", "title": "d12 on one RTX 4070"}
    with db.write() as session:
        run = runs.create(session, body, now=START)
        first = session.query(tables.Phase).filter_by(run_id=run.id).one()
        _story(session, run, first)
        return run.id


def _story(session: Session, run: tables.Run, first: tables.Phase) -> None:
    schedule = PhaseSchedule.model_validate(first.schedule)
    first.name = "rtx4070-d12-130k"
    t1 = START
    crashed = t1 + CRASHED_AT * STEP_SECONDS
    t2 = crashed + DOWN
    ended = t2 + (END_ONE - RESUMED_AT) * STEP_SECONDS
    t3 = ended + PAUSE
    finished = t3 + (END_TWO - END_ONE) * STEP_SECONDS
    first.started_at, first.ended_at, first.ended_at_step = t1, ended, END_ONE
    second = _second_phase(run, schedule, t3)
    second.ended_at, second.ended_at_step = finished, END_TWO
    session.add(second)
    rows = [
        _attempt(run, 1, 0, (t1, crashed), 0, CRASHED_AT, "failed", "crashed", RESUMED_AT),
        _attempt(run, 2, 0, (t2, ended), RESUMED_AT, END_ONE, "completed", "finished", None),
        _attempt(run, 3, 1, (t3, finished), END_ONE, END_TWO, "completed", "finished", None),
    ]
    session.add_all(rows)
    session.flush()
    after = PhaseSchedule.model_validate(second.schedule)
    for row, curve, begun in zip(rows, (schedule, schedule, after), (t1, t2, t3), strict=True):
        _points(session, row, curve, begun)
    _evaluations(session, run, rows, ended, t3, finished)
    _checkpoints(session, run, rows)
    _events(session, run, t2, t3)
    processed = END_TWO + CRASHED_AT - RESUMED_AT
    run.state = "completed"
    run.reason, run.reason_message = "finished", "It reached the last step of its plan."
    run.desired_state, run.queue_position = "running", None
    run.step, run.end_step, run.tokens_seen = END_TWO, END_TWO, END_TWO * BATCH
    run.started_at, run.ended_at, run.last_step_at = t1, finished, finished
    run.exact_resume = "mismatch"
    run.frozen = {"attention": "sdpa", "device_batch_size": 8, "compute_dtype": "bf16"}
    run.progress = {
        "attempt": 3, "tokens_per_second": BATCH / STEP_SECONDS, "rate_steps": 1000,
        "vram_peak_bytes": 9_400_000_000,
    }  # fmt: skip
    run.totals = {
        "steps": processed, "tokens": processed * BATCH, "seconds": processed * STEP_SECONDS,
        "lost_steps": CRASHED_AT - RESUMED_AT, "restarts": 1,
        "energy_joules": processed * STEP_SECONDS * WATTS,
    }  # fmt: skip


def rewind(session: Session, run_id: str, reached: int) -> float:
    """The finished run as it was while phase 2 ran, at step `reached`; the time it then was."""
    run = session.get_one(tables.Run, run_id)
    phase = session.query(tables.Phase).filter_by(run_id=run_id, index=1).one()
    attempt = session.query(tables.Attempt).filter_by(run_id=run_id, number=3).one()
    for table in (tables.Evaluation, tables.Checkpoint):
        session.query(table).filter(table.run_id == run_id, table.step > reached).delete()
    now = (attempt.started_at or 0) + (reached - END_ONE) * STEP_SECONDS
    phase.ended_at = phase.ended_at_step = None
    attempt.ended_at = attempt.outcome = attempt.reason = None
    attempt.last_step, attempt.execution.state = reached - 1, "running"
    run.state, run.step, run.tokens_seen = "running", reached, reached * BATCH
    run.ended_at, run.last_step_at = None, now
    session.flush()
    return now


def _second_phase(run: tables.Run, before: PhaseSchedule, at: float) -> tables.Phase:
    plan = Plan.model_validate(run.plan)
    ask = extend.ExtendRequest.model_validate(
        {"to_step": END_TWO, "schedule": {"mode": "replan", "rewarm_steps": 0}}
    )
    shown = extend.preview(
        ask,
        [before],
        joint_step=END_ONE,
        reached_step=END_ONE,
        end_step=END_TWO,
        batch_tokens=BATCH,
        flops_per_token=plan.horizon.flops_per_token,
        warmup_steps=40,
        warmdown_ratio=0.65,
        peak_weight_decay=plan.hyperparameters.weight_decay,
    )
    return tables.Phase(
        run_id=run.id,
        index=1,
        name="rtx4070-d12-200k",
        start_step=END_ONE,
        end_step=END_TWO,
        schedule=shown.schedule.model_dump(mode="json"),
        preview=shown.model_dump(mode="json"),
        created_at=at,
        started_at=at,
    )


def _attempt(
    run: tables.Run,
    number: int,
    phase: int,
    times: tuple[float, float],
    start: int,
    end: int,
    outcome: str,
    reason: str,
    limit: int | None,
) -> tables.Attempt:
    return rows.attempt(
        run_id=run.id,
        number=number,
        phase_index=phase,
        token="t",
        created_at=times[0],
        started_at=times[0],
        ended_at=times[1],
        device="cuda:0",
        device_name=DEVICE,
        versions={"torch": "2.13.0"},
        start_step=start,
        last_step=end - 1,
        lineage_limit=limit,
        steps_done=end - start,
        steps_lost=0 if limit is None else end - limit,
        outcome=outcome,
        reason=reason,
    )


def loss_at(step: int) -> float:
    """Falls from 10 to 2.6 over 200,000 steps, in a straight line from step 1,000 on."""
    return 10.0 - 6.5 * step / 1000 if step < 1000 else 3.5 - 0.9 * (step - 1000) / 199_000


def _points(session: Session, row: tables.Attempt, curve: PhaseSchedule, begun: float) -> None:
    start, end = row.start_step or 0, (row.last_step or 0) + 1
    points = [
        {
            "step": step,
            "unix_seconds": begun + (step - start + 1) * STEP_SECONDS,
            "loss": loss_at(step),
            "lr_multiplier": lr_multiplier(curve, step),
            "step_seconds": STEP_SECONDS,
            "tokens_per_second": BATCH / STEP_SECONDS,
            "vram_reserved_bytes": 9_400_000_000,
            "power_watts": WATTS,
        }
        for step in range(start, end)
    ]
    binned = [(p["step"], p["unix_seconds"], [p.get(key) for key in rollups.KEYS]) for p in points]
    for at in range(0, len(binned), 16_384):
        rollups.add(session.connection(), row.id, binned[at : at + 16_384])
    session.execute(insert(tables.Point), [{"attempt_id": row.id, **point} for point in points])


def _evaluations(
    session: Session,
    run: tables.Run,
    rows: list[tables.Attempt],
    ended: float,
    resumed: float,
    last: float,
) -> None:
    def add(kind: str, step: int, value: float, attempt: int, at: float, seconds: float) -> None:
        core = {"results": CORE_ONE, "not_scored": {}} if kind == "core" else {}
        session.add(
            tables.Evaluation(
                run_id=run.id, attempt_id=rows[attempt - 1].id, kind=kind, step=step, value=value,
                identity={"bpb": "a" * 64, "core": "c" * 64}[kind], settings={}, result=core,
                seconds=seconds, unix_seconds=at,
            )
        )  # fmt: skip

    for thousand in range(10, 130, 10):
        at = START + thousand * 1000 * STEP_SECONDS
        add("bpb", thousand * 1000, 1.0 - thousand / 1000, 1 if thousand < 87 else 2, at, 90.0)
    add("bpb", END_ONE, 0.780026, 2, ended - 2, 90.0)
    add("core", END_ONE, 0.1916, 2, ended - 1, 600.0)
    add("bpb", END_ONE, 0.810152, 3, resumed + 1, 90.0)
    add("core", END_ONE, 0.1932, 3, resumed + 2, 600.0)
    add("bpb", END_TWO, 0.775, 3, last, 90.0)
    add("core", END_TWO, 0.195, 3, last, 600.0)


def _checkpoints(session: Session, run: tables.Run, rows: list[tables.Attempt]) -> None:
    """Every 10,000 steps, and one where phase 1's warmdown begins: 14 at the end of phase 1."""
    steps = sorted([*range(10_000, END_TWO + 1, 10_000), 45_500])
    for step in steps:
        number = 1 if step <= RESUMED_AT else 2 if step <= END_ONE else 3
        session.add(
            tables.Checkpoint(
                run_id=run.id, attempt_id=rows[number - 1].id,
                name=f"step-{step:09d}-a{number:04d}", step=step, bytes=1_993_000_000,
                manifest_sha256="0" * 64, why="warmdown" if step == 45_500 else "cadence",
                pinned=step == 45_500, created_at=START + step,
            )
        )  # fmt: skip


def _events(session: Session, run: tables.Run, resumed: float, extended: float) -> None:
    def add(kind: str, level: str, step: int, message: str, at: float, attempt: int, **data):
        session.add(
            tables.Event(
                run_id=run.id, attempt_number=attempt, kind=kind, level=level, step=step,
                message=message, data=data, unix_seconds=at,
            )
        )  # fmt: skip

    add(
        "resume_checked", "info", RESUMED_AT, "next_loss: verified", resumed, 2,
        what="next_loss", verdict="verified", expected=3.111, found=3.111,
    )  # fmt: skip
    add(
        "resume_checked", "warning", END_ONE, "val_bpb: mismatch", extended, 3,
        what="val_bpb", verdict="mismatch", expected=0.780026, found=0.810152,
    )  # fmt: skip
    add(
        "crashed", "error", CRASHED_AT, "The trainer ended without finishing.",
        resumed - DOWN, 1,
    )  # fmt: skip
