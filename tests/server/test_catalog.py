"""GET /v1/catalog: the rules that a page would otherwise copy, held to what the daemon does."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from server.api import catalog as catalog_api
from server.domain import runs, states
from server.domain.states import REPEATS, VERBS, YIELDS, Desired, State
from server.queries import run_views
from tests.server.asgi import Asgi
from trainer.contract.extend import EXTEND_LENGTHS, ExtendRequest
from trainer.contract.metrics import JOULES_PER_KWH
from trainer.contract.reasons import Reason
from trainer.contract.schedule import (
    EXTEND_MODES,
    ExtendSchedule,
    curve,
    extend_schedule,
    initial_schedule,
)
from trainer.contract.spec import DataSpec, RunSpec, resolve
from trainer.contract.spec.data import SOURCES_OF_FIELD
from trainer.contract.spec.training import HORIZON_UNITS, HorizonSpec

WEB = Path(__file__).parents[2] / "server" / "web"
ASK: dict[str, Callable[..., bool]] = {
    "start": lambda session, run: runs.start(session, run, 1.0),
    "pause": lambda session, run: runs.request_pause(session, run, 1.0),
    "resume": lambda session, run: runs.resume(session, run, now=1.0),
    "cancel": lambda session, run: runs.request_cancel(session, run, 1.0),
}


@pytest.fixture(scope="module")
def catalog() -> dict[str, Any]:
    return catalog_api.catalog().model_dump(mode="json")


@pytest.mark.parametrize("verb", ASK)
def test_a_verb_changes_something_exactly_where_the_catalog_says(
    asgi: Asgi, catalog: dict[str, Any], verb: str
) -> None:
    asgi.create("demo")
    (shown,) = (v for v in catalog["verbs"] if v["verb"] == verb)
    assert set(shown["changes_in"]) == set(shown["legal_in"]) - REPEATS[verb]
    for state in (s for s in State if verb in VERBS[s]):
        with asgi.db.write() as session:
            run = run_views.get_run(session, "demo")
            run.state, run.desired_state, run.queue_position = state, _desired(state), None
            assert ASK[verb](session, run) is (state in shown["changes_in"]), state
            session.rollback()


def _desired(state: State) -> Desired:
    if state in (State.paused, State.pausing):
        return Desired.paused
    if state in (State.cancelled, State.cancelling):
        return Desired.cancelled
    return Desired.running


def test_verbs_that_repeat_are_legal_where_they_repeat() -> None:
    for verb, repeated in REPEATS.items():
        assert all(verb in VERBS[state] for state in repeated), verb


def test_each_reason_has_a_noun_and_each_yield_its_words(catalog: dict[str, Any]) -> None:
    assert {r["code"]: r["noun"] for r in catalog["reasons"]} == {r: r.noun for r in Reason}
    assert all("_" not in r["noun"] and r["noun"] for r in catalog["reasons"])
    assert {r["code"]: r["yields"] for r in catalog["reasons"] if r["yields"]} == YIELDS
    assert catalog["kilowatt_hour_joules"] == JOULES_PER_KWH


# --- extends -------------------------------------------------------------------------------------

VARIED: dict[str, Any] = {
    "rewarm_steps": 90, "peak_frac": 0.7, "decay_ratio": 0.3, "warmdown_ratio": 0.3,
    "final_lr_frac": 0.3, "shape": "cosine", "weight_decay": "keep",
}  # fmt: skip


@pytest.mark.parametrize("mode", EXTEND_MODES, ids=lambda mode: mode.mode)
def test_each_field_of_a_mode_shapes_its_curve(mode: Any) -> None:
    def followed(**given: Any) -> Any:
        before = initial_schedule(1000, 40, 0.65, "linear", 0.05)
        ask = ExtendSchedule(mode=mode.mode, **given)
        after = extend_schedule(before, 900, 3000, ask, warmup_steps=40, warmdown_ratio=0.65)
        return curve(after, 900, 3000)

    assert set(mode.fields) <= set(VARIED) == ExtendSchedule.model_fields.keys() - {"mode"}
    for field in mode.fields:
        assert followed(**{field: VARIED[field]}) != followed(), field


def test_the_modes_lengths_and_horizons_are_those_of_the_requests(catalog: dict[str, Any]) -> None:
    modes = catalog["choices"]["extend"]["/schedule/mode"]
    assert [m["mode"] for m in catalog["extend_modes"]] == modes
    assert modes[0] == ExtendSchedule().mode  # forms choose the first
    assert catalog["extend_lengths"] == EXTEND_LENGTHS
    assert EXTEND_LENGTHS.keys() < ExtendRequest.model_fields.keys()
    assert catalog["horizons"].keys() == HORIZON_UNITS.keys() == HorizonSpec.model_fields.keys()


# --- fields --------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["builtin", "text", "jsonl", "parquet", "hf", "nanochat_packed"])
def test_a_source_takes_the_fields_that_the_catalog_offers_for_it(source: str) -> None:
    values = {"path": "/data", "name": "owner/set", "num_shards": 1, "max_shards": 1}
    needed = {f: values[f] for f in ("path", "name") if source in SOURCES_OF_FIELD[f]}
    for field, sources in SOURCES_OF_FIELD.items():
        given = {**needed, field: values.get(field, "word")}
        if source in sources:
            DataSpec.model_validate({"source": source, **given})
        elif field not in ("max_shards", "path"):  # ignored where nothing is downloaded or read
            with pytest.raises(ValidationError):
                DataSpec.model_validate({"source": source, **given})


def test_the_bounds_are_those_at_which_a_spec_is_refused(catalog: dict[str, Any]) -> None:
    checked = 0
    for pointer, limits in catalog["bounds"]["spec"].items():
        path = tuple(pointer[1:].split("/"))
        if path[0] in ("hours", "notify", "budget") or path[1:2] == ("groups",):
            continue  # lists, and bounds that are themselves excluded
        for name, sign in (("min", -1), ("max", 1)):
            if name in limits:
                edge = limits[name]
                beyond = edge + sign * (1 if "step" in limits else max(abs(edge), 1.0) / 2)
                assert not _refuses(path, edge), (pointer, edge)
                assert _refuses(path, beyond), (pointer, beyond)
                checked += 1
        if "maxlength" in limits and path[-1] not in ("time_limit", "prompts"):
            assert not _refuses(path, "a" * limits["maxlength"]), pointer
            assert _refuses(path, "a" * (limits["maxlength"] + 1)), pointer
    assert checked > 60


def _refuses(path: tuple[str, ...], value: Any) -> bool:
    """True if the value itself is refused, not how it fits to others."""
    body: Any = value
    for key in reversed(path):
        body = {key: body}
    try:
        resolve({"name": "a", **body})
    except ValidationError as error:
        bounded = ("greater", "less", "multiple_of", "string_too_long", "string_pattern")
        return any(
            e["loc"][: len(path)] == path and e["type"].startswith(bounded) for e in error.errors()
        )
    return False


def test_every_body_of_the_catalog_has_its_bounds(catalog: dict[str, Any]) -> None:
    bounds = catalog["bounds"]
    assert bounds.keys() == catalog["choices"].keys() == catalog_api.BODIES.keys()
    assert bounds["spec"]["/priority"] == {"min": -100, "max": 100, "step": 1}
    assert bounds["sample"]["/max_tokens"]["max"] == 4096
    assert bounds["extend"]["/schedule/peak_frac"]["max"] == 10
    assert bounds["group"]["/repeats"]["max"] == 64
    assert bounds["completion"]["/top_p"] == {"min": 0, "max": 1}
    assert bounds["resume"]["/overrides/device_batch_size"]["min"] == 1
    assert RunSpec.model_fields.keys() >= {p.split("/")[1] for p in bounds["spec"]}


# --- the page ------------------------------------------------------------------------------------

COPIES = {
    "joules of a kilowatt-hour": re.compile(r"3\.6e6|3_?600_?000\b"),
    "a bound of an input": re.compile(r"h\(\"input\"[^\n]*\b(?:min|max|maxlength): -?\d"),
    "a bound of a field": re.compile(r"\{[^{}\n]*\b(?:min|max|maxlength): -?[\d.]+"),
    "the limits of a priority": re.compile(r"[−-]100\b"),
    "the nouns of reasons": re.compile("|".join(re.escape(f'"{r.noun}"') for r in Reason)),
    "the words of yields": re.compile("|".join(re.escape(f'"{w}"') for w in YIELDS.values())),
    "verbs and states": re.compile(r"(?:start|resume|cancel): \(state\)"),
    "the text of a mode": re.compile("|".join(re.escape(m.description) for m in EXTEND_MODES)),
    "the sources of a field": re.compile(r"\bonly: \["),
    "the fields of a horizon": re.compile(r'\["data_param_ratio"'),
    "the lengths of an extend": re.compile('"by tokens"'),
    "the days of a week": re.compile('"mon", "tue"'),
}  # fmt: skip
COMMENT = re.compile(r"/\*.*?\*/", re.DOTALL)
DRAWN = {"job-drawer.js", "charts.js"}  # a progress bar from 0 to 1, the slider of the smoothing


@pytest.mark.parametrize("what", COPIES)
def test_the_page_copies_no_rule_of_the_daemon(what: str) -> None:
    scripts = [p for p in WEB.rglob("*.js") if "vendor" not in p.parts]
    found = [
        f"{path.name}: {hit.group()}"
        for path in scripts
        if not (what.startswith("a bound") and path.name in DRAWN)
        for hit in COPIES[what].finditer(COMMENT.sub("", path.read_text()))
    ]
    assert found == []


def test_settled_states_are_those_of_the_rules(catalog: dict[str, Any]) -> None:
    assert set(catalog["settled_states"]) == states.SETTLED
