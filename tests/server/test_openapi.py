"""The OpenAPI document is the contract: schemathesis holds the app to it.

TRAIND_SCHEMATHESIS_EXAMPLES sets the examples for each operation and phase (a soak uses hundreds);
the default keeps this to seconds. No answer may be a 5xx (503 says busy and is allowed), have a
status that is not documented, or differ from its schema.
"""

from __future__ import annotations

import os
import re
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from pydantic import BaseModel
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from server.api.docs import document
from server.api.openapi import STATUS_DESCRIPTIONS
from server.api.vocabulary import FIELDS, in_place
from server.settings import Settings
from tests.server.asgi import BASE, Asgi
from trainer.contract.metrics import BY_KEY

EXAMPLES = int(os.environ.get("TRAIND_SCHEMATHESIS_EXAMPLES", "8"))
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    unsupported_method,
]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asgi]:
    made = Asgi(tmp_path_factory.mktemp("described"))
    made.create()
    made.create("waiting", start=False)
    made.create("busy")
    made.move("busy", "running")
    yield made
    made.close()


@pytest.fixture(scope="module")
def described(served: Asgi) -> Any:
    return schemathesis.openapi.from_asgi("/openapi.json", served.app, headers={"Host": BASE[7:]})


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_f47_the_app_keeps_to_its_document(described: Any, mode: GenerationMode) -> None:
    """Every operation, with what its schema allows and with what it forbids."""
    tried: Counter[str] = Counter()
    for found in described.get_all_operations():
        operation = found.ok()

        @given(case=operation.as_strategy(generation_mode=mode))
        @settings(
            max_examples=EXAMPLES,
            deadline=None,
            derandomize="TRAIND_SCHEMATHESIS_EXAMPLES" not in os.environ,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=[
                HealthCheck.too_slow,
                HealthCheck.filter_too_much,
                HealthCheck.data_too_large,
            ],
        )
        def check(case: Any) -> None:
            _aim(case)
            case.call_and_validate(headers={"Host": BASE[7:]}, checks=CHECKS)
            tried[case.operation.label] += 1

        try:
            check()
        except Unsatisfiable:  # nothing about it can be wrong
            continue
    print(f"{tried.total()} requests of {len(tried)} operations")
    assert tried.total() > 20 * (mode is GenerationMode.POSITIVE)


def _aim(case: Any) -> None:
    """Half of the requests go to what exists: a random name would only ever be not found."""
    if case.body and len(str(case.body)) % 2:
        return
    there = {
        "run": "busy", "job": "job_0", "checkpoint": "step-000000001-a0001", "model": "busy",
    }  # fmt: skip
    for name in case.path_parameters or {}:
        case.path_parameters[name] = there.get(name, case.path_parameters[name])


def test_every_operation_says_what_it_refuses(asgi: Asgi) -> None:
    document = asgi.get("/openapi.json").json()
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            said = operation["responses"]
            assert {"401", "403", "413", "422", "503"} <= said.keys(), (method, path)
            if "{" in path:
                assert "404" in said, (method, path)
            for status, response in said.items():
                if int(status) >= 400:
                    assert list(response["content"]) == ["application/problem+json"], (path, status)
                    assert response["description"] == STATUS_DESCRIPTIONS[int(status)]


def test_every_operation_has_a_summary_of_its_own(asgi: Asgi) -> None:
    """In place of FastAPI's, which is the handler's name: Show, Index."""
    paths = asgi.get("/openapi.json").json()["paths"]
    summaries = [one["summary"] for methods in paths.values() for one in methods.values()]
    assert [said for said in summaries if not 10 <= len(said) <= 110] == []
    assert [said for said, times in Counter(summaries).items() if times > 1] == []


def test_the_document_is_written_once(asgi: Asgi, monkeypatch: pytest.MonkeyPatch) -> None:
    first = asgi.get("/openapi.json")
    monkeypatch.setattr(asgi.app, "openapi", None)
    again = asgi.get("/openapi.json")
    assert again.content == first.content
    etag = again.headers["etag"]
    assert asgi.get("/openapi.json", headers={"If-None-Match": etag}).status_code == 304
    plain = asgi.get("/openapi.json", headers={"Accept-Encoding": "identity"})
    assert "content-encoding" not in plain.headers
    assert plain.json() == first.json()
    assert plain.headers["etag"] != etag, "another representation"


def test_many_that_ask_first_wait_for_one(asgi: Asgi, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each would take a second of the daemon, and all of them its threads."""
    written, build = [], asgi.app.openapi

    def counting() -> Any:
        written.append(1)
        time.sleep(0.2)
        return build()

    monkeypatch.setattr(asgi.app, "openapi", counting)
    with ThreadPoolExecutor(8) as pool:
        sizes = list(pool.map(lambda _: len(document(asgi.app).content), range(8)))
    assert len(set(sizes)) == 1
    assert written == [1]


def test_every_route_but_pages_is_documented(asgi: Asgi) -> None:
    document = asgi.get("/openapi.json").json()
    pages = {"/", "/docs", "/openapi.json", "/favicon.ico", "/static/{name:path}"}
    pages |= {"/v1/chat/completions", "/v1/responses", "/v1/embeddings"}  # only say what there is
    for route in asgi.app.state.routes:
        if route.path not in pages:
            for method in route.methods - {"HEAD"}:
                assert method.lower() in document["paths"][route.path_format], (method, route.path)


def test_every_endpoint_of_the_contract_is_there(asgi: Asgi) -> None:
    paths = asgi.get("/openapi.json").json()["paths"]
    run = "/v1/runs/{run}"
    promised = {
        "/v1/plan": "post", "/v1/runs": "get post", run: "get patch delete",
        **{f"{run}/{verb}": "post" for verb in ("start", "pause", "resume", "extend", "cancel")},
        **{f"{run}/{part}": "get" for part in
           ("progress", "phases", "attempts", "metrics", "events", "logs", "report")},
        f"{run}/checkpoints": "get post", f"{run}/evaluations": "get post",
        f"{run}/samples": "get post", f"{run}/exports": "post", "/v1/imports": "post",
        f"{run}/audits": "post",
        "/v1/events": "get", "/v1/jobs/{job}": "get delete",
        "/v1/jobs/{job}/stream": "get",
        f"{run}/checkpoints/{{checkpoint}}": "patch delete",
        f"{run}/checkpoints/{{checkpoint}}/files/{{name}}": "get", "/v1/system": "get",
        "/v1/completions": "post", "/v1/models": "get", "/v1/models/{model}": "get",
        "/v1/session": "post delete", "/healthz": "get", "/readyz": "get", "/metrics": "get",
    }  # fmt: skip
    for path, methods in promised.items():
        assert set(methods.split()) <= paths[path].keys(), path


def test_every_route_that_the_readme_names_is_there(asgi: Asgi) -> None:
    paths = asgi.get("/openapi.json").json()["paths"]
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    named = re.findall(r"`(GET|POST|PATCH|DELETE) (/v1/[^`?\s]*)`", readme)
    assert ("GET", "/v1/jobs/{job}/stream") in named
    for method, path in named:
        assert method.lower() in paths[path], (method, path)


def test_references_lead_somewhere(asgi: Asgi) -> None:
    document = asgi.get("/openapi.json").json()
    names = document["components"]["schemas"]

    def look(node: Any) -> None:
        if isinstance(node, dict):
            if "$ref" in node:
                assert node["$ref"].rpartition("/")[2] in names
            for below in node.values():
                look(below)
        elif isinstance(node, list):
            for below in node:
                look(below)

    look(document)


def test_every_field_has_a_description(asgi: Asgi) -> None:
    schemas = asgi.get("/openapi.json").json()["components"]["schemas"]
    fields = {(name, field): found for name, schema in schemas.items()
              for field, found in schema.get("properties", {}).items()}  # fmt: skip
    assert len(fields) > 500
    bare = [f"{name}.{field}" for (name, field), found in fields.items()
            if not found.get("description")]  # fmt: skip
    assert bare == [], "describe it below the field, or in server/api/vocabulary.py"
    users = Counter(field for (_, field), found in fields.items()
                    if found["description"] == FIELDS.get(field))  # fmt: skip
    lonely = sorted(name for name in FIELDS if users[name] < 2 and name not in BY_KEY)
    assert lonely == [], "one model or none has it: describe it below the field"


class _Described(BaseModel):
    own: int
    """Below the field,
    on two lines."""
    bare: int


class _Extended(_Described):
    added: int
    """Added."""
    own: int
    """Another."""


def test_a_docstring_below_a_field_describes_it_and_is_inherited() -> None:
    assert in_place(_Described) == {"own": "Below the field, on two lines."}
    assert in_place(_Extended) == {"own": "Another.", "added": "Added."}


@pytest.mark.parametrize("field", Settings.model_fields)
def test_every_setting_has_a_description(field: str) -> None:
    assert Settings.model_fields[field].description
