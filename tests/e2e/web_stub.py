"""A daemon made of numbers: the API's answers for a hundred runs of 200,000 steps, without any.

For what a real daemon cannot show within a test's minutes: long histories, failed and recovering
runs, names and titles that would break a page. Everything goes through server.schemas, so it says
nothing that a daemon could not say.
"""

from __future__ import annotations

import asyncio
import json
import math
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import ValidationError

from server.api import catalog, web
from server.api.app import Compressed
from server.api.openai_dialect import Completion
from server.queries import planned as planned_of
from server.queries.columns import columns as columns_of
from server.schemas.checkpoints import SaveRequest
from server.schemas.groups import GroupRequest
from server.schemas.plans import PlanAnswer
from server.schemas.policies import PlacePolicyAnswer, PlacePolicyView
from server.schemas.runs import ExtendAnswer, PatchRun, ResumeRequest
from server.schemas.system import SystemView
from tests.e2e import stub_groups
from tests.e2e.stub_runs import HOSTILE_TITLE, StubRun, make_runs, metrics_of
from trainer.contract.extend import ExtendRequest
from trainer.contract.jobs import EvaluateParams, ExportParams, SampleParams
from trainer.contract.plan import make_plan
from trainer.contract.spec import resolve

GB = 10**9
LISTS = ("attempts", "checkpoints", "evaluations", "phases", "samples")
VERBS = {"pause": "paused", "resume": "running", "start": "running", "cancel": "cancelled"}
JOBS = {  # what is posted to a run: the kind of job it makes, and its body
    "checkpoints": ("save", SaveRequest),
    "evaluations": ("evaluate", EvaluateParams),
    "samples": ("sample", SampleParams),
    "exports": ("export", ExportParams),
}


def create_stub(
    num_runs: int = 100, token: str | None = None, runs: list[StubRun] | None = None
) -> FastAPI:
    """The stub with `num_runs` runs, or those given. token: what it wants before it answers
    (None: nothing).
    """
    app = FastAPI()
    app.include_router(web.router)
    app.include_router(catalog.router)
    app.add_middleware(Compressed)
    runs = make_runs(num_runs) if runs is None else runs
    priorities: dict[str, int] = {}
    policies: dict[str, PlacePolicyAnswer] = {}

    def find(ref: str) -> StubRun | None:
        return next((r for r in runs if ref in (r.id, r.name)), None)

    @app.middleware("http")
    async def guard(request: Request, proceed: Any) -> Response:
        said = request.headers.get("authorization", "").removeprefix("Bearer ")
        if token and request.url.path.startswith("/v1") and token not in (
            said, request.cookies.get("traind_session"),
        ):  # fmt: skip
            return _problem(401, "A token is required", "This daemon requires a token.")
        return await proceed(request)

    @app.post("/v1/session")
    def session() -> Response:
        response = Response(status_code=204)
        response.set_cookie("traind_session", token or "", httponly=True, samesite="strict")
        return response

    @app.get("/healthz")
    def healthz() -> Response:
        return JSONResponse({"status": "ok"})

    @app.get("/v1/system")
    def system() -> Response:
        return _json(_system(runs[0]))

    @app.get("/v1/runs")
    def index_runs() -> Response:
        return _page([r.summary() for r in runs])

    @app.post("/v1/runs")
    async def create(request: Request) -> Response:
        try:
            run = StubRun.create(await request.json())
        except ValidationError as error:
            return _invalid(error)
        runs.insert(0, run)
        return _json(run.detail(), 201)

    @app.post("/v1/plan")
    async def plan(request: Request) -> Response:
        try:
            spec = resolve(await request.json())
            made = make_plan(spec, runs[0].context)
            return _json(PlanAnswer(spec=spec, plan=made, planned=planned_of.of_plan(made)))
        except ValidationError as error:
            return _invalid(error)
        except ValueError as error:
            return _problem(422, "The request is not valid", str(error))

    @app.get("/v1/jobs")
    def jobs(run: str | None = None, state: str | None = None) -> Response:
        if state == "failed":
            failed = {"id": "job_p", "kind": "prepare", "state": "failed", "message": "no column"}
            return _page([runs[0].job("prepare").model_copy(update=failed)])
        running = (
            runs[0]
            .job("export")
            .model_copy(
                update={"id": "job_2", "state": "running", "stage": "writing", "fraction": 0.4}
            )
        )
        done = runs[0].job("sample")
        return _page([running, done])

    @app.get("/v1/jobs/{job}")
    def show_job(job: str) -> Response:
        done = runs[0].job("export")
        result = {
            "path": "/data/jobs/job_1/export",
            "files": ["tokenizer/tokenizer.pkl"],
            "step": 9,
        }
        if job == "job_2":
            return _json(
                done.model_copy(
                    update={"id": job, "state": "running", "stage": "writing", "fraction": 0.4}
                )
            )
        return _json(done.model_copy(update={"id": job, "result": result}))

    @app.get("/v1/jobs/{job}/logs")
    def job_log(job: str) -> Response:
        said = "parquet: no column named text\n" if job == "job_p" else "reading step 9\n"
        return Response(said, media_type="text/plain")

    @app.get("/v1/jobs/{job}/files/{name:path}")
    def job_file(job: str, name: str) -> Response:
        return Response(b"pickled", headers={"Content-Disposition": "attachment"})

    @app.delete("/v1/jobs/{job}")
    def cancel_job(job: str) -> Response:
        return _json(runs[0].job("export").model_copy(update={"id": job}), 202)

    @app.get("/v1/queue")
    def queue() -> Response:
        return _json(stub_groups.queue(runs[0], runs[-3:], priorities))

    @app.get("/v1/devices/{device}/policy")
    def policy(device: str) -> Response:
        return _json(policies.get(device, PlacePolicyAnswer()))

    @app.put("/v1/devices/{device}/policy")
    async def put_policy(device: str, request: Request) -> Response:
        try:
            asked = PlacePolicyView.model_validate_json(await request.body())
        except ValidationError as error:
            return _invalid(error)
        policies[device] = PlacePolicyAnswer(**dict(asked))
        return _json(policies[device])

    @app.get("/v1/groups")
    def groups() -> Response:
        if len(runs) < stub_groups.NUM_MEMBERS:
            return _page([])
        members = runs[-stub_groups.NUM_MEMBERS :]
        return _page([stub_groups.summary("ladder", members, HOSTILE_TITLE)])

    @app.post("/v1/groups")
    async def create_group(request: Request) -> Response:
        try:
            asked = GroupRequest.model_validate(await request.json())
        except ValidationError as error:
            return _invalid(error)
        return _json(stub_groups.group(asked.name, runs[-stub_groups.NUM_MEMBERS :]), 201)

    @app.get("/v1/groups/{name}")
    def show_group(name: str) -> Response:
        return _json(stub_groups.group(name, runs[-stub_groups.NUM_MEMBERS :]))

    @app.get("/v1/models")
    def models() -> Response:
        made = [
            {"id": f"{r.name}@{c.step}", "object": "model", "created": 1, "owned_by": "traind"}
            for r in runs[:2]
            for c in r.checkpoints()[:3]
        ]
        return JSONResponse({"object": "list", "data": made})

    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        body = await request.json()
        return StreamingResponse(_completion(body), media_type="text/event-stream")

    @app.patch("/v1/runs/{ref}")
    async def patch(request: Request, ref: str) -> Response:
        run = find(ref)
        if run is None:
            return _gone(ref)
        try:
            asked = PatchRun.model_validate(await request.json()).model_dump(exclude_unset=True)
        except ValidationError as error:
            return _invalid(error)
        run.title, run.metadata = asked.get("title", run.title), asked.get("metadata", run.metadata)
        priorities[run.id] = asked.get("priority", priorities.get(run.id, 0))
        return _json(run.detail())

    @app.get("/v1/runs/{ref}")
    def show(ref: str) -> Response:
        run = find(ref)
        return _json(run.detail()) if run else _gone(ref)

    @app.delete("/v1/runs/{ref}")
    def delete(ref: str) -> Response:
        run = find(ref)
        if run:
            runs.remove(run)
        return Response(status_code=204)

    @app.get("/v1/runs/{ref}/metrics")
    def metrics(
        ref: str,
        keys: str = "",
        from_step: int = 0,
        to_step: int | None = None,
        max_points: int = 1000,
        bin_steps: int = 1,
        columns: bool = False,
        bands: str = "",
        planned: int = 0,
    ) -> Response:
        run = find(ref)
        if run is None:
            return _gone(ref)
        asked = keys.split(",")
        answer = metrics_of(run, asked, from_step, to_step, max_points, bin_steps)
        if not columns:
            return _json(answer)
        shown = columns_of(answer, set(bands.split(",")))
        if planned:
            peak, begin = run.plan.hyperparameters.weight_decay, max(from_step, run.step)
            shown.planned = planned_of.along(run.schedules, peak, begin, to_step, planned)
        return _json(shown)

    @app.post("/v1/runs/{ref}/extend")
    async def extend(request: Request, ref: str, dry_run: bool = False) -> Response:
        run = find(ref)
        if run is None:
            return _gone(ref)
        try:
            preview = run.preview(ExtendRequest.model_validate(await request.json()))
        except ValidationError as error:
            return _invalid(error)
        except ValueError as error:
            return _problem(409, "Not possible now", str(error), hint="Say a later step.")
        if not dry_run:
            run.extend(preview)
        return _json(
            ExtendAnswer(
                run=run.detail(), plan=preview, joint=preview.joint,
                discarded_steps=preview.discarded_steps, warnings=preview.warnings,
            ),
            200 if dry_run else 202,
        )  # fmt: skip

    @app.post("/v1/runs/{ref}/{verb}")
    async def act(request: Request, ref: str, verb: str) -> Response:
        run = find(ref)
        if run is None or verb not in VERBS | JOBS:
            return _gone(ref)
        kind, body = JOBS.get(verb, ("", ResumeRequest))
        try:
            body.model_validate_json(await request.body() or b"{}")
        except ValidationError as error:
            return _invalid(error)
        if verb in VERBS:
            run.move(VERBS[verb])
            return _json(run.detail(), 202)
        return _json(run.job(kind), 202)

    @app.get("/v1/events")
    @app.get("/v1/runs/{ref}/events")
    async def events(request: Request, ref: str | None = None) -> Response:
        run = find(ref) if ref else None
        if "text/event-stream" in request.headers.get("accept", ""):
            return StreamingResponse(stream(runs[:3], run), media_type="text/event-stream")
        return _page(run.events if run else [])

    @app.get("/v1/runs/{ref}/logs")
    def logs(ref: str) -> Response:
        return Response("step 000143 | loss 2.91 | lr 0.41\n" * 80, media_type="text/plain")

    @app.get("/v1/runs/{ref}/{what}")
    def listed(ref: str, what: str) -> Response:
        run = find(ref)
        if run is None or what not in (*LISTS, "progress"):
            return _gone(ref)
        return _json(run.progress()) if what == "progress" else _page(run.listed(what))

    return app


async def _completion(body: dict[str, Any]) -> AsyncIterator[str]:
    """As server/api/completion_stream.py writes: one token a piece, then [DONE]."""
    head = {"id": "cmpl-1", "created": 1, "model": body["model"], "system_fingerprint": "step-1"}
    for word in (" Paris", ",", f" says {body['model']}", "."):
        logprobs = {
            "tokens": [word], "token_logprobs": [-0.5], "top_logprobs": [{word: -0.5}],
            "text_offset": [0],
        }  # fmt: skip
        choices = [
            {"index": i, "text": word, "logprobs": logprobs} for i in range(body.get("n", 1))
        ]
        piece = Completion.model_validate(head | {"choices": choices})
        yield f"data: {piece.model_dump_json()}\n\n"
    yield "data: [DONE]\n\n"


async def stream(active: list[StubRun], only: StubRun | None) -> AsyncIterator[str]:
    while True:
        for run in active:
            if only in (None, run) and run.state == "running":
                run.advance()
                yield f"event: progress\ndata: {run.progress().model_dump_json()}\n\n"
        await asyncio.sleep(1)


def _system(run: StubRun) -> SystemView:
    return SystemView.model_validate(
        {
            "version": "0.2.0", "python": "3.11.2", "versions": {"torch": "2.13.0"}, "sqlite": {},
            "devices": [
                {
                    "device": "cuda:0", "name": "NVIDIA GeForce RTX 4070", "memory_bytes": 12 * GB,
                    "memory_used_bytes": int(9.4 * GB), "utilisation": 0.98,
                    "memory_by_owner": {run.name: int(9.1 * GB)},
                    "power_watts": 187 + 5 * math.sin(time.time()), "temperature_celsius": 71.0,
                    "peak_flops": {"value": 5.83e13, "source": "dense bf16 of the data sheet"},
                    "run": run.name,
                }
            ],
            "data_dir": "/home/ada/.local/share/traind", "disk_total_bytes": 1000 * GB,
            "disk_free_bytes": 412 * GB, "database_bytes": 90_000_000, "backups": [],
            "warnings": [], "uptime_seconds": 400_000.0, "auth": "none",
        }
    )  # fmt: skip


def _json(model: Any, status: int = 200) -> Response:
    return Response(model.model_dump_json(), status, media_type="application/json")


def _page(items: list[Any]) -> Response:
    text = ",".join(item.model_dump_json() for item in items)
    return Response(
        f'{{"data":[{text}],"has_more":false,"next":null}}', media_type="application/json"
    )


def _gone(ref: str) -> Response:
    return _problem(404, "Not found", f"There is no run called {ref}.")


def _problem(status: int, title: str, detail: str, **extra: Any) -> Response:
    body = {"type": "urn:traind:problem:stub", "title": title, "status": status, "detail": detail}
    return JSONResponse(body | extra, status, media_type="application/problem+json")


def _invalid(error: ValidationError) -> Response:
    found = [
        {"pointer": "/" + "/".join(map(str, e["loc"])), "detail": e["msg"]} for e in error.errors()
    ]
    return _problem(422, "The request is not valid", found[0]["detail"], errors=found)


if __name__ == "__main__":
    print(json.dumps({"port": int(sys.argv[1])}), flush=True)
    uvicorn.run(create_stub(int(sys.argv[2]) if len(sys.argv) > 2 else 100), port=int(sys.argv[1]))
