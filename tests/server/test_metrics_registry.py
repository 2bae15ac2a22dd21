"""One registry of metrics: a new one needs its entry and the line that measures it."""

from __future__ import annotations

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from server.database import tables
from server.domain.jobs import OVER
from server.domain.states import ENDED, REQUESTS, SETTLED, VERBS, State
from server.ingestion import steps
from server.metrics import rollups
from server.metrics.counters import Tally
from server.prometheus import text
from server.queries import curves
from tests.server import rows
from tests.server.asgi import Asgi
from trainer.contract import metrics
from trainer.contract.events import Step
from trainer.contract.extend import JUMP
from trainer.contract.spec import PRESETS


def test_the_catalog_has_every_metric_verb_state_and_preset(asgi: Asgi) -> None:
    catalog = asgi.get("/v1/catalog").json()
    assert [m["key"] for m in catalog["metrics"]] == [m.key for m in metrics.METRICS]
    legal = {v["verb"]: set(v["legal_in"]) for v in catalog["verbs"]}
    assert legal == {
        verb: {state for state in State if verb in VERBS[state]}
        for verb in set().union(*VERBS.values())
    }
    requests = {v["verb"]: set(v["legal_in"]) for v in catalog["requests"]}
    assert requests == {name: set(legal) for name, legal in REQUESTS.items()}
    assert set(catalog["settled_states"]) == SETTLED
    assert set(catalog["ended_states"]) == ENDED == OVER
    assert catalog["learning_rate_jump"] == JUMP
    assert catalog["presets"].keys() == PRESETS.keys()
    assert catalog["choices"]["spec"]["/data/packing"] == ["best_fit", "lossless"]
    assert catalog["choices"]["extend"]["/schedule/mode"] == ["replan", "hold", "rewarm", "decay"]
    assert "flash3" in catalog["choices"]["resume"]["/overrides/attention"]


def test_every_surface_takes_its_keys_from_the_registry() -> None:
    assert set(curves.METRIC_KEYS) == {m.key for m in metrics.METRICS}
    assert rollups.KEYS == metrics.BINNED_KEYS
    gauges = {m.gauge for m in metrics.METRICS if m.gauge}
    assert gauges <= {name for name, _, _ in text._FAMILIES}


def test_columns_of_points_are_the_first_binned_metrics() -> None:
    """Stored rollups have no names, only places: the order may only grow at its end."""
    assert rollups.COLUMNS == (
        "loss", "loss_smooth", "lr_multiplier", "momentum", "weight_decay", "grad_norm",
        "step_seconds", "tokens_per_second", "mfu", "vram_reserved_bytes", "power_watts",
        "temperature_celsius",
    )  # fmt: skip
    columns = tables.Point.__table__.columns.keys()
    assert set(rollups.COLUMNS) < set(columns)


@pytest.fixture
def with_one_more(monkeypatch: pytest.MonkeyPatch) -> str:
    """The registry with one more metric at its end, as the next release may have it."""
    key = "update_norm"
    monkeypatch.setattr(rollups, "KEYS", (*rollups.KEYS, key))
    row = "<" + "Iddd" * len(rollups.KEYS)
    monkeypatch.setattr(rollups, "_ROW", rollups.struct.Struct(row))
    monkeypatch.setattr(rollups, "_NOTHING", [0, 0.0, 0.0, 0.0] * len(rollups.KEYS))
    return key


def test_a_metric_without_a_column_is_stored_and_binned(asgi: Asgi, with_one_more: str) -> None:
    asgi.create("demo")
    with asgi.db.write() as session:
        run = session.scalars(select(tables.Run)).one()
        attempt = _attempt(session, run)
        reported = [(float(s), _step(s, {with_one_more: s / 10})) for s in range(40)]
        steps.add(session, run, attempt, reported, Tally(), is_newest=True)
        session.flush()
        for size in (1, 16):
            bins = list(
                rollups.read(session.connection(), attempt.id, 0, 40, size, ["loss", with_one_more])
            )
            total = sum(one.stats[4 + 1] for one in bins)
            assert total == pytest.approx(sum(s / 10 for s in range(40)))


def test_a_record_with_fields_of_a_newer_trainer_is_read() -> None:
    record = _step(3, {}).model_dump() | {"of_the_next_release": 1}
    assert Step.model_validate(record).step == 3


def _attempt(session: Session, run: tables.Run) -> tables.Attempt:
    attempt = rows.attempt(
        run_id=run.id, phase_index=0, number=1, token="t", device="cpu", created_at=1.0
    )
    session.add(attempt)
    session.flush()
    return attempt


def _step(step: int, more: dict[str, float | None]) -> Step:
    return Step(
        step=step, loss=1.0, loss_smooth=1.0, lr_multiplier=1.0, momentum=0.9, weight_decay=0.1,
        tokens=10, seconds=0.1, more=more,
    )  # fmt: skip
