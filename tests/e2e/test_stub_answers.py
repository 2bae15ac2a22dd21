"""The stub answers as the daemon does: every answer goes through the response model of the real
route and comes out as it was, so that nothing is missing, extra or of another kind."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute
from pydantic import TypeAdapter

from server.api import app as api
from server.api.openai_dialect import Completion
from server.schemas.problem import Problem
from server.schemas.progress import Progress
from server.settings import Settings
from tests.e2e import web_stub

RUN = "/v1/runs/rtx4070-d12-200k"
SPEC = {"name": "made", "preset": "demo"}
KEYS = "keys=loss,lr_multiplier&max_points=50"
BODIES: dict[str, Any] = {"samples": {"prompts": ["a"]}, "checkpoints": {"pin": False}}
CASES: list[tuple[str, str, Any]] = [
    ("GET", "/v1/system", None),
    ("GET", "/v1/catalog", None),
    ("GET", "/v1/runs", None),
    ("POST", "/v1/runs", SPEC),
    ("POST", "/v1/plan", SPEC),
    ("GET", "/v1/jobs", None),
    ("GET", "/v1/jobs?state=failed", None),
    ("GET", "/v1/jobs/job_1", None),
    ("GET", "/v1/jobs/job_2", None),
    ("DELETE", "/v1/jobs/job_2", None),
    ("GET", "/v1/queue", None),
    ("GET", "/v1/devices/cpu/policy", None),
    ("PUT", "/v1/devices/cpu/policy", {"hours": [{"from": "22:00", "to": "07:00"}]}),
    ("GET", "/v1/groups", None),
    ("POST", "/v1/groups", {"name": "made", "depths": [2, 3, 4, 5], "repeats": 2}),
    ("GET", "/v1/groups/ladder", None),
    ("GET", "/v1/models", None),
    ("PATCH", RUN, {"title": "another", "priority": 3}),
    ("GET", RUN, None),
    ("GET", f"{RUN}/metrics?{KEYS}", None),
    ("GET", f"{RUN}/metrics?{KEYS}&columns=true&bands=loss&planned=9", None),
    ("POST", f"{RUN}/extend?dry_run=true", {"add_steps": 500}),
    ("POST", f"{RUN}/extend", {"add_steps": 500}),
    ("GET", f"{RUN}/events", None),
    ("GET", "/v1/events", None),
    ("GET", f"{RUN}/progress", None),
    *(("GET", f"{RUN}/{what}", None) for what in web_stub.LISTS),
    *(("POST", f"{RUN}/{verb}", None) for verb in web_stub.VERBS),
    *(("POST", f"{RUN}/{what}", BODIES.get(what)) for what in web_stub.JOBS),
    ("GET", "/v1/runs/nowhere", None),
    ("POST", "/v1/runs", {"name": "made", "modle": 1}),
    ("PUT", "/v1/devices/cpu/policy", {"problems": []}),
]
NO_JSON = {  # text, files and empty answers
    ("POST", "/v1/session"): 204,
    ("GET", "/v1/jobs/{job}/logs"): 200,
    ("GET", "/v1/jobs/{job}/files/{name:path}"): 200,
    ("DELETE", "/v1/runs/{ref}"): 204,
    ("GET", "/v1/runs/{ref}/logs"): 200,
}
STREAMS = {("POST", "/v1/completions")}


@pytest.fixture(scope="module")
def stub() -> FastAPI:
    return web_stub.create_stub(20)


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> list[APIRoute]:
    return api.make(Settings(data_dir=tmp_path_factory.mktemp("real") / "data")).state.routes


def ask(app: FastAPI, method: str, url: str, body: Any = None) -> httpx.Response:
    async def once() -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://stub") as client:
            return await client.request(method, url, json=body)

    return asyncio.run(once())


def served_by(routes: list[APIRoute], method: str, url: str) -> APIRoute:
    path = url.split("?")[0]
    return next(r for r in routes if method in (r.methods or ()) and r.path_regex.fullmatch(path))


@pytest.mark.parametrize(("method", "url", "body"), CASES)
def test_an_answer_of_the_stub_is_one_that_the_daemon_could_give(
    stub: FastAPI, real: list[APIRoute], method: str, url: str, body: Any
) -> None:
    answer = ask(stub, method, url, body)
    route = served_by(real, method, url)
    status = answer.status_code
    if status >= 400:
        assert answer.headers["content-type"] == "application/problem+json"
        Problem.model_validate_json(answer.content)
        return
    promised = {route.status_code or 200: route.response_model} | {
        int(code): about["model"] for code, about in route.responses.items() if "model" in about
    }
    assert status in promised, f"the daemon answers {sorted(promised)}"
    model = TypeAdapter(promised[status])
    read = model.dump_python(model.validate_json(answer.content), mode="json")
    assert read == json.loads(answer.content)


def test_what_the_stub_refuses_is_refused() -> None:
    app = web_stub.create_stub(20)
    refused = [(m, u) for m, u, body in CASES if ask(app, m, u, body).is_error]
    assert refused == [(method, url) for method, url, _ in CASES[-3:]]


def test_a_streamed_answer_is_made_of_what_the_daemon_streams(stub: FastAPI) -> None:
    answer = ask(stub, "POST", "/v1/completions", {"model": "m@1", "prompt": "a", "n": 2})
    *pieces, end = [line[6:] for line in answer.text.splitlines() if line]
    assert end == "[DONE]"
    for piece in pieces:
        assert Completion.model_validate_json(piece).model_dump(mode="json") == json.loads(piece)


def test_a_message_of_the_stream_is_a_progress() -> None:
    run = web_stub.make_runs(1)[0]

    async def first() -> str:
        return await anext(aiter(web_stub.stream([run], None)))

    frame = asyncio.run(first())
    event, data = frame.strip().splitlines()
    assert event == "event: progress"
    said = data.removeprefix("data: ")
    assert Progress.model_validate_json(said).model_dump(mode="json") == json.loads(said)


@pytest.mark.parametrize(("method", "path"), NO_JSON)
def test_text_files_and_empty_answers_have_the_status_that_the_daemon_gives(
    real: list[APIRoute], method: str, path: str
) -> None:
    url = path.replace("{job}", "job_1").replace("{ref}", "demo").replace("{name:path}", "a")
    answer = ask(web_stub.create_stub(3), method, url)
    assert answer.status_code == NO_JSON[method, path]
    assert (served_by(real, method, url).status_code or 200) == answer.status_code


def test_every_endpoint_of_the_stub_is_held() -> None:
    """A new one needs a case above."""
    app = web_stub.create_stub(3)
    own = [r for r in app.routes if isinstance(r, APIRoute) and r.path.startswith("/v1/")]
    assert len(own) > 20
    asked = [(method, url.split("?")[0]) for method, url, _ in CASES]
    held = {(m, served_by(own, m, url).path) for m, url in asked if url != "/v1/catalog"}
    for route in own:
        named = {(method, route.path) for method in route.methods or ()}
        assert named <= held | NO_JSON.keys() | STREAMS, named
