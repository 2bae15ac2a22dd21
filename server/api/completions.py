"""OpenAI-compatible completion routes: POST /v1/completions, GET /v1/models."""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Path, Request
from fastapi.exceptions import RequestValidationError
from starlette.responses import Response

from server.api import openai_dialect
from server.api.completion_stream import MAX_OPEN, Answering, ServingJob, replies_to
from server.api.deps import Conf, Db, Doing, StrictRoute
from server.api.errors import from_validation
from server.api.openai_dialect import Completion, CompletionRequest, ModelList, ModelView
from server.api.openapi import problems
from server.database import tables
from server.database.db import Database
from server.domain import jobs
from server.errors import Busy, NotOffered, TraindError
from server.queries import models
from trainer.contract.completions import SERVE_SOCKET
from trainer.contract.rundir import DataDir

if TYPE_CHECKING:
    from pathlib import Path as FilePath

SSE = "text/event-stream"


class OpenAIErrorRoute(StrictRoute):
    """Adds the `error` object that OpenAI's clients read to each error response."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def refusing(request: Request) -> Response:
            try:
                return await handle(request)
            except RequestValidationError as error:
                refusal = from_validation(request, error)
            except TraindError as error:
                refusal = error
            refusal.extra["error"] = openai_dialect.openai_error(refusal)
            raise refusal

        return refusing


router = APIRouter(prefix="/v1", tags=["completions"], route_class=OpenAIErrorRoute)
ModelRef = Annotated[
    str,
    Path(pattern=models.MODEL_PATTERN, description="RUN, RUN@STEP, RUN@best or RUN@CHECKPOINT."),
]


@router.get("/models", responses=problems(404))
def index(db: Db) -> ModelList:
    """Checkpoints available as models, newest first."""
    with db.read() as session:
        return ModelList(data=[openai_dialect.view(model) for model in models.index(session)])


@router.get("/models/{model}", responses=problems(404))
def show(model: ModelRef, db: Db) -> ModelView:
    """A checkpoint as a model."""
    with db.read() as session:
        return openai_dialect.view(models.find(session, model))


@router.post(
    "/completions",
    response_model=Completion,
    responses={200: {"content": {SSE: {"schema": {"type": "string"}}}}} | problems(404),
)
def complete(body: CompletionRequest, act: Doing, conf: Conf, request: Request) -> Response:
    """Continue prompts with the weights of a checkpoint, as OpenAI's legacy completions do.

    A process that keeps models loaded starts with the first request and ends after ten idle
    minutes. With `stream` the text comes as server-sent events, `[DONE]` at the end.
    """
    state = request.app.state
    if (kept := act.kept()) is not None:  # before the model, which may be deleted, is looked up
        return kept
    with act.db.read() as session:
        model = models.find(session, body.model)
    if len(state.completions) >= MAX_OPEN:
        raise Busy(f"{MAX_OPEN} completions are open already.", headers={"Retry-After": "5"})
    order = openai_dialect.order_of(body, model, str(conf.paths.run(model.run_id).root))
    telling = openai_dialect.CompletionBuilder(body, model)
    replies = replies_to(order, lambda job: _server(act.db, conf.paths, job), state.stream)
    keeping = act if act.key is not None else None
    return Answering(telling, replies, state.stream, state.completions, keeping)


@router.post("/chat/completions", include_in_schema=False)
@router.post("/responses", include_in_schema=False)
def chat(request: Request) -> Response:
    """Chat is not available: a base model has no conversation turns. The error names the
    alternative."""
    raise NotOffered(
        f"There is no {request.url.path}: a pretrained model has no conversation turns.",
        hint="Use POST /v1/completions with a `prompt`; in OpenAI's clients completions.create() "
        "instead of chat.completions.create().",
    )


@router.post("/embeddings", include_in_schema=False)
def embeddings() -> Response:
    """Embeddings are not available. The error names the alternative."""
    raise NotOffered(
        "There is no /v1/embeddings: these models continue text.",
        hint="Use POST /v1/completions with a `prompt`; `logprobs` are given there.",
    )


def _server(db: Database, paths: DataDir, job_id: str | None) -> ServingJob:
    """The given serving job; once it has ended, a new one, unless it failed before it served."""
    with db.read() as session:
        row = session.get(tables.Job, job_id) if job_id else jobs.serving(session)
        if row is not None and row.state not in jobs.OVER:
            return ServingJob(row.id, _socket(paths, row))
        if row is not None and row.state == "failed" and row.stage != "serving":
            return ServingJob(row.id, _socket(paths, row), row.message.partition("\n")[0])
    with db.write() as session:
        row = jobs.serve(session, time.time())
        return ServingJob(row.id, _socket(paths, row))


def _socket(paths: DataDir, job: tables.Job) -> FilePath:
    return paths.job(job.id) / SERVE_SOCKET
