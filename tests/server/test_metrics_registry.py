"""One registry of metrics: a new one needs its entry and the line that measures it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from server.database import tables
from server.domain.jobs import OVER
from server.domain.states import ENDED, REQUESTS, SETTLED, VERBS, State
from server.metrics import rollups
from server.prometheus import text
from server.queries import curves
from tests.server.asgi import Asgi
from tests.server.one_more_metric import LAST
from trainer.contract import metric_text, metrics
from trainer.contract.events import Step
from trainer.contract.extend import JUMP
from trainer.contract.spec import PRESETS

ROOT = Path(__file__).parents[2]


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
    assert set(rollups.COLUMNS) <= set(tables.Point.__table__.columns.keys())
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


@pytest.fixture(scope="module")
def shown() -> dict[str, Any]:
    """What each surface shows of a metric that is one entry more, by the name of the surface."""
    program = [sys.executable, "-m", "tests.server.one_more_metric"]
    done = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_one_more_metric_is_stored_by_key_and_binned(shown: dict[str, Any]) -> None:
    assert shown["stored"] is True
    assert shown["curve"][:3] == [0.0, 0.1, 0.2]
    assert shown["curve"][-1] == shown["highest of the bins"] == LAST
    first, *lines = shown["csv"].splitlines()
    assert first.endswith(",update_norm")
    assert lines[-1].endswith(f",{LAST}")


def test_one_more_metric_is_in_the_answers(shown: dict[str, Any]) -> None:
    assert shown["progress"] == {"update_norm": LAST}
    assert shown["run"]["update_norm"] == LAST
    entry = shown["catalog"]
    told = (entry["key"], entry["label"], entry["unit"], entry["digits"], entry["short"])
    assert told == ("update_norm", "Update norm", "rms", 2, "update")
    assert f'traind_update_norm{{run="demo"}} {LAST}' in shown["prometheus"].splitlines()
    assert "# HELP traind_update_norm L2 norm of the update" in shown["prometheus"]


def test_one_more_metric_is_shown_with_its_name_unit_and_digits(shown: dict[str, Any]) -> None:
    assert re.search(r"^update +7\.12 *$", shown["traind show"], re.MULTILINE)
    assert re.search(r"more +update 7\.12 ", shown["traind watch"])
    assert re.search(r"^update_norm .* 7\.12 +0\.00 +7\.12 ", shown["traind metrics"], re.MULTILINE)
    assert re.search(r"^Update norm \(rms\): .*highest 7\.125", shown["report"], re.MULTILINE)
    assert "| `update_norm` | rms | L2 norm of the update. |" in shown["docs"]
    assert "`traind_update_norm`" in shown["docs"]


def test_a_metric_of_a_newer_daemon_is_shown_under_its_key() -> None:
    """The command line may be older than the daemon."""
    assert metric_text.named("of_the_next_release", 0.25) == "of_the_next_release 0.25"


def test_each_metric_is_written_in_its_own_format() -> None:
    assert {m.key: metric_text.shown(m.key, 0.4215) for m in metrics.METRICS if m.digits} == {
        "loss": "0.4215", "loss_smooth": "0.4215", "lr_multiplier": "0.4215", "momentum": "0.4215",
        "weight_decay": "0.4215", "grad_norm": "0.421", "step_seconds": "422 ms", "mfu": "42.1 %",
        "vram_reserved_bytes": "0 B", "val_bpb": "0.4215", "core": "0.4215",
    }  # fmt: skip
    assert metric_text.shown("tokens_per_second", 55_690.4) == "55,690 tok/s"
    assert metric_text.shown("power_watts", 320.4) == "320 W"
    assert metric_text.shown("temperature_celsius", 61.0) == "61 °C"
    assert metric_text.shown("loss", None) == "–"


def test_a_record_with_fields_of_a_newer_trainer_is_read() -> None:
    record = _step(3, {}).model_dump() | {"of_the_next_release": 1}
    assert Step.model_validate(record).step == 3


def _step(step: int, more: dict[str, float | None]) -> Step:
    return Step(
        step=step, loss=1.0, loss_smooth=1.0, lr_multiplier=1.0, momentum=0.9, weight_decay=0.1,
        tokens=10, seconds=0.1, more=more,
    )  # fmt: skip
