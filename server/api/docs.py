"""The OpenAPI document and a self-contained page that displays it."""

from __future__ import annotations

import json
import threading

from fastapi import APIRouter, FastAPI, Request
from starlette.responses import Response

from server.api.web import respond, send
from server.dashboard.files import CachedFile

router = APIRouter(include_in_schema=False)
_writing = threading.Lock()  # once, however many requests come first


@router.get("/openapi.json")
def openapi(request: Request) -> Response:
    return respond(request, document(request.app))


@router.get("/docs")
async def docs(request: Request) -> Response:
    return send(request, "docs.html")


def document(app: FastAPI) -> CachedFile:
    """The OpenAPI document. It is serialised at the first request and kept as bytes, which take a
    tenth of the memory of its objects."""
    with _writing:
        made: CachedFile | None = getattr(app.state, "openapi", None)
        if made is None:
            content = json.dumps(app.openapi(), ensure_ascii=False, separators=(",", ":"))
            made = app.state.openapi = CachedFile.of(content.encode(), "application/json")
    return made
