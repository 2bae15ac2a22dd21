"""A trainer's side of the journal, for tests of ingestion: writes what a real one would say."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server.database import tables
from server.database.db import Database
from server.domain import attempts, runs
from server.ingestion import ingest
from server.settings import Settings
from trainer.contract import events
from trainer.contract.journal import JournalHeader, Writer
from trainer.contract.reasons import Reason
from trainer.contract.rundir import OUTBOX, checkpoint_name

BATCH_TOKENS = 4096


@dataclass
class Reporter:
    """One attempt of a run and its open outbox."""

    db: Database
    settings: Settings
    run_id: str
    attempt_id: int
    number: int
    writer: Writer

    def say(self, event: events.TrainerEvent) -> None:
        self.writer.append(event.model_dump(mode="json"))

    def begin(self, step: int = 0, checkpoint: str | None = None, **more: Any) -> None:
        self.say(started())
        tokens = step * BATCH_TOKENS
        self.say(events.Resumed(step=step, checkpoint=checkpoint, tokens_seen=tokens, **more))

    def steps(self, low: int, high: int, **more: Any) -> None:
        for number in range(low, high):
            self.say(step(number, **more))

    def save(self, at: int, **more: Any) -> str:
        name = checkpoint_name(at, self.number)
        self.say(saved(at, name, **more))
        return name

    def end(self, outcome: Any, at: int, reason: Reason = Reason.requested) -> None:
        self.say(events.Ended(outcome=outcome, reason=reason, step=at))

    def ingest(self) -> ingest.IngestResult:
        """Everything that is there, in as many transactions as it takes."""
        applied = 0
        while True:
            result = ingest.ingest(self.db, self.execution_id, self.settings.paths)
            applied += result.applied
            if not result.more:
                return ingest.IngestResult(applied, False, result.problem)

    @property
    def execution_id(self) -> int:
        with self.db.read() as session:
            return session.get_one(tables.Attempt, self.attempt_id).execution_id

    @property
    def outbox(self) -> Path:
        return self.settings.paths.run(self.run_id).attempt(self.number) / OUTBOX


def create(db: Database, name: str = "demo", steps: int = 200, **body: Any) -> str:
    """The id of a new run, queued unless the body says otherwise."""
    with db.write() as session:
        batch = {"tokens": BATCH_TOKENS, "device_batch_size": 8}
        asked = {"name": name, "horizon": {"steps": steps}, "batch": batch, **body}
        return runs.create(session, asked, now=1000.0).id


def attempt(db: Database, settings: Settings, run_id: str) -> Reporter:
    """The next attempt of a run, with an outbox that says nothing yet."""
    with db.write() as session:
        run = session.get_one(tables.Run, run_id)
        row = attempts.next_attempt(session, run, device="cpu", now=2000.0)
        made = (row.id, row.number, row.token)
    directory = settings.paths.run(run_id).attempt(made[1])
    directory.mkdir(parents=True)
    writer = Writer.create(directory / OUTBOX, JournalHeader(run_id, made[1], made[2]))
    return Reporter(db, settings, run_id, made[0], made[1], writer)


def started() -> events.Started:
    return events.Started(
        pid=4242,
        boot_id="boot",
        start_ticks=1,
        device="cpu",
        device_name="a processor",
        versions={"torch": "2"},
        fingerprint={"threads": 1},
        peak_flops=1e12,
        peak_source="a test",
    )


def step(number: int, *, seconds: float = 0.5, **more: Any) -> events.Step:
    said: dict[str, Any] = {
        "loss": 3.0 - number / 1000,
        "loss_smooth": 3.0,
        "lr_multiplier": 1.0,
        "momentum": 0.95,
        "weight_decay": 1.0,
        "grad_norm": 1.0,
        "energy_joules": 2.0,
        **more,
    }
    return events.Step(step=number, tokens=BATCH_TOKENS, seconds=seconds, **said)


def saved(at: int, name: str, **more: Any) -> events.CheckpointSaved:
    said: dict[str, Any] = {"why": "cadence", "bytes": 1000, **more}
    return events.CheckpointSaved(
        step=at,
        name=name,
        manifest_sha256="0" * 64,
        seconds=0.2,
        stall_seconds=0.01,
        **said,
    )
