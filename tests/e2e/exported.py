"""The real app with runs in its database that export every metric there is."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Literal

from prometheus_client.parser import text_string_to_metric_families

from server.database import tables
from server.database.db import Database
from server.domain import states
from server.domain.states import State
from tests.server.asgi import Asgi
from tests.server.reporting import Reporter, attempt, create
from trainer.contract import events
from trainer.contract.ranks import RankRow
from trainer.contract.reasons import Reason

DEVICE: dict[str, Any] = {
    "vram_allocated_bytes": 8_000_000_000,
    "vram_reserved_bytes": 9_000_000_000,
    "vram_peak_bytes": 9_400_000_000,
    "vram_total_bytes": 12_000_000_000,
    "power_watts": 200.0,
    "temperature_celsius": 71.0,
}
Series = dict[str, list[dict[str, str]]]


class Exported:
    """`alive` trains, after an attempt that crashed; `broken` has failed: its loss was NaN."""

    def __init__(self, data_dir: Path, **settings: Any) -> None:
        self.asgi = Asgi(data_dir, **settings)
        self.run_id = create(self.asgi.db, "alive", steps=100_000)
        self._reporter = self.next_attempt()
        self.train(40)
        self.next_attempt()
        self.train(20)
        self._break("broken")

    def next_attempt(self) -> Reporter:
        """The last attempt, if any, has crashed: a restart, and steps that are lost."""
        asgi = self.asgi
        made = attempt(asgi.db, asgi.settings, self.run_id)
        self._step = 0
        _starting(asgi.db, self.run_id)
        made.begin()
        self._reporter = made
        return made

    def train(self, steps: int) -> None:
        """So many steps, an evaluation and a checkpoint, from the trainer's journal into rows."""
        first, self._step = self._step, self._step + steps
        self._reporter.steps(first, self._step, **DEVICE)
        self._reporter.say(_ranks(self._step))
        self._reporter.say(_evaluation("bpb", self._step, 0.81))
        self._reporter.say(_evaluation("core", self._step, 0.19))
        self._reporter.save(self._step)
        assert self._reporter.ingest().problem is None

    def _break(self, name: str) -> None:
        db = self.asgi.db
        run_id = create(db, name)
        reporter = attempt(db, self.asgi.settings, run_id)
        _starting(db, run_id)
        reporter.begin()
        reporter.steps(0, 3)
        reporter.ingest()
        with db.write() as session:
            run = session.get_one(tables.Run, run_id)
            states.move(session, run, State.failed, Reason.non_finite_loss)

    def scrape(self) -> str:
        return self.asgi.app.state.metrics.scrape(self.asgi.db, time.time()).decode()

    def close(self) -> None:
        self.asgi.close()


def _ranks(step: int) -> events.Ranks:
    """As a run on two devices reports them."""
    each = {"host": "here", "pid": 1, "compute_seconds": 0.4, "waited_seconds": 0.1}
    rows = [{**each, **DEVICE, "rank": rank, "device": f"cuda:{rank}"} for rank in range(2)]
    return events.Ranks(step=step, ranks=[RankRow.model_validate(row) for row in rows])


def _evaluation(kind: Literal["bpb", "core"], step: int, value: float) -> events.EvaluationResult:
    return events.EvaluationResult(
        evaluation=kind, step=step, value=value, identity=kind, settings={}, result={}, seconds=1.0
    )


def _starting(db: Database, run_id: str) -> None:
    """As the supervisor does before it spawns; the first step then makes it running."""
    with db.write() as session:
        session.get_one(tables.Run, run_id).state = State.starting


def series(scraped: str) -> Series:
    """{sample name: labels of each of its series}."""
    found: Series = {}
    for family in text_string_to_metric_families(scraped):
        for sample in family.samples:
            found.setdefault(sample.name, []).append(dict(sample.labels))
    return found
