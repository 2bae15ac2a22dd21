"""Every number and path of the spec at its edges, alone and in pairs: 201 or 422, never a 500."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.guard import validation
from server.schemas.policies import PlacePolicyView
from tests.server.asgi import Asgi
from tests.server.spec_edges import PATH_FIELDS, PATHS, body_of, edges, leaves
from trainer.contract.spec import RunSpec

EDGES = edges()


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asgi]:
    made = Asgi(tmp_path_factory.mktemp("edges"))
    yield made
    made.close()


def answer_to(one: Asgi, *asked: tuple[str, Any], reads: bool = False) -> int:
    """The status of a run with these values, whose reads must answer too; deleted again."""
    body = body_of("edge", *asked)
    answer = one.post("/v1/runs", body)
    assert answer.status_code in (201, 422), (asked, answer.status_code, answer.text[:500])
    if answer.status_code == 422:
        assert answer.json()["errors"], (asked, answer.text)
        return 422
    if reads:
        for path in ("", "/progress", "/phases", "/report"):
            got = one.get(f"/v1/runs/edge{path}")
            assert got.status_code == 200, (asked, path, got.text[:500])
        more = one.post("/v1/runs/edge/extend?dry_run=true", {"to_step": 10**9})
        assert more.status_code in (200, 409, 422), (asked, more.text[:500])
    assert one.request("DELETE", "/v1/runs/edge").status_code == 204
    return 201


def test_the_edges_are_those_of_the_spec() -> None:
    places = {place for place, _ in leaves()}
    assert {"horizon.flops", "horizon.steps", "batch.tokens", "model.depth"} <= places
    assert len(places) > 35


@pytest.mark.parametrize("place", sorted({place for place, _ in EDGES}))
def test_alone(place: str, one: Asgi) -> None:
    found = {answer_to(one, (p, v), reads=True) for p, v in EDGES if p == place}
    assert found <= {201, 422}


@settings(
    max_examples=150, deadline=None, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)  # fmt: skip
@given(first=st.sampled_from(EDGES), second=st.sampled_from(EDGES))
def test_in_pairs(first: tuple[str, Any], second: tuple[str, Any], one: Asgi) -> None:
    answer_to(one, first, second)


@pytest.mark.parametrize(
    ("asked", "pointer"),
    [
        ({"horizon": {"flops": 1e30}}, "/horizon/flops"),
        ({"horizon": {"tokens": 10**15}}, "/horizon/tokens"),
        ({"horizon": {"data_param_ratio": 1e6}, "model": {"depth": 12}}, None),
        ({"horizon": {"steps": 10**9}, "batch": {"tokens": 2048 * 10**8}}, None),
        ({"data": {"source": "text", "path": "~nosuchuser/x"}}, "/data/path"),
        ({"data": {"tokenizer": {"path": "~nosuchuser/x"}}}, "/data/tokenizer/path"),
        ({"evaluate": {"core_bundle": "~nosuchuser/x"}}, "/evaluate/core_bundle"),
        ({"data": {"source": "text", "path": "/" + "a" * 300}}, "/data/path"),
    ],
)
def test_the_field_is_named(asked: dict[str, Any], pointer: str | None, one: Asgi) -> None:
    for path in ("/v1/runs", "/v1/plan"):
        answer = one.post(path, {"name": "named", "start": False, **asked})
        if pointer is None or (path == "/v1/plan" and pointer.startswith(("/data", "/evaluate"))):
            assert answer.status_code in (200, 201, 422), answer.text
        else:
            assert answer.status_code == 422, answer.text
            assert answer.json()["errors"][0]["pointer"] == pointer


def test_no_run_is_longer_than_the_limit(one: Asgi) -> None:
    for horizon in ({"tokens": 10**15}, {"flops": 1e29}, {"data_param_ratio": 1e6}):
        answer = one.post("/v1/plan", {"horizon": horizon, "batch": {"tokens": 2048}})
        if answer.status_code == 200:
            assert answer.json()["plan"]["horizon"]["steps"] <= 10**9
        else:
            assert answer.status_code == 422


@pytest.mark.parametrize("path", PATHS)
def test_paths_of_an_import(path: str, one: Asgi) -> None:
    body = {"path": path, "tag": "d4", "step": 1, "name": "imported"}
    answer = one.post("/v1/imports", body)
    assert answer.status_code in (201, 202, 404, 422), answer.text


def test_paths_that_are_there_are_still_taken(one: Asgi, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text " * 500)
    assert answer_to(one, ("data.path", str(tmp_path))) == 201
    assert set(PATH_FIELDS) == {"data.path", "data.tokenizer.path", "evaluate.core_bundle"}


def test_every_pattern_is_explained_in_words() -> None:
    """A regular expression is no answer to somebody who wrote "7" for a time."""
    found: set[str] = set()

    def collect(part: Any) -> None:
        if isinstance(part, dict):
            found.update(text for key, text in part.items() if key == "pattern")
            for value in part.values():
                collect(value)
        elif isinstance(part, list):
            for value in part:
                collect(value)

    for model in (RunSpec, PlacePolicyView):
        definitions = model.model_json_schema()
        collect(definitions.get("$defs", {}))
        collect(list(definitions["properties"].values()))
    patterns = {text for text in found if isinstance(text, str)}
    assert len(patterns) >= 10
    assert patterns <= validation.PATTERNS.keys()


def test_a_time_that_is_none_is_answered_with_how_to_write_one(one: Asgi) -> None:
    body = {"name": "x", "hours": [{"from": "22:00", "to": "7"}]}
    answer = one.post("/v1/runs", body)
    assert answer.status_code == 422
    detail = "a time is written HH:MM, from 00:00 to 23:59 (given: 7)"
    assert answer.json()["errors"] == [{"pointer": "/hours/0/to", "detail": detail}]
