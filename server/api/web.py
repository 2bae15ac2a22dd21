"""Routes of the dashboard's files."""

from __future__ import annotations

import re

from fastapi import APIRouter, Request
from starlette.responses import Response

from server.dashboard import files
from server.dashboard.files import CachedFile

CONTENT_SECURITY_POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; object-src 'none'; base-uri 'none'; "
    "form-action 'self'; frame-ancestors 'none'"
)
_GZIP_WANTED = re.compile(r"\bgzip\b(?!\s*;\s*q=0(\.0*)?\s*(,|$))")
router = APIRouter(include_in_schema=False)


@router.get("/")
async def dashboard(request: Request) -> Response:
    return send(request, "index.html")


@router.get("/favicon.ico")
async def favicon(request: Request) -> Response:
    return send(request, "favicon.svg")


@router.get("/static/{name:path}")
async def static(request: Request, name: str) -> Response:
    return send(request, name)


def send(request: Request, name: str) -> Response:
    """Send the file of a name, which is looked up among the existing files and never used as a
    path."""
    return respond(request, files.get(name))


def respond(request: Request, file: CachedFile) -> Response:
    """The file, compressed if the client accepts it; 304 if the client has it."""
    is_compressed = (
        len(file.compressed) < len(file.content)
        and _GZIP_WANTED.search(request.headers.get("accept-encoding", "")) is not None
    )
    etag = f'"{file.etag}-gzip"' if is_compressed else f'"{file.etag}"'
    headers = {
        "ETag": etag,
        "Cache-Control": "no-cache",
        "Content-Security-Policy": CONTENT_SECURITY_POLICY,
        "Vary": "Accept-Encoding",
    }
    if etag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    if is_compressed:
        headers["Content-Encoding"] = "gzip"
    body = file.compressed if is_compressed else file.content
    return Response(body, headers=headers, media_type=file.media_type)
