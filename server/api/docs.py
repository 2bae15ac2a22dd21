"""The OpenAPI document and a self-contained page that displays it."""

from __future__ import annotations

import json

from fastapi import APIRouter, Request
from starlette.responses import Response

from server.api.web import send

router = APIRouter(include_in_schema=False)


@router.get("/openapi.json")
def openapi(request: Request) -> Response:
    content = json.dumps(request.app.openapi(), ensure_ascii=False, separators=(",", ":"))
    return Response(content, media_type="application/json")


@router.get("/docs")
async def docs(request: Request) -> Response:
    return send(request, "docs.html")
