"""The dashboard's files: everything comes from this package, nothing from elsewhere."""

from __future__ import annotations

import hashlib
import mimetypes
from dataclasses import dataclass
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable

from fastapi import APIRouter, Request
from starlette.responses import Response

from server.errors import NotFound

CONTENT_SECURITY_POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; object-src 'none'; base-uri 'none'; "
    "form-action 'self'; frame-ancestors 'none'"
)
_TYPES = {".js": "text/javascript", ".mjs": "text/javascript", ".css": "text/css"} | {
    ".html": "text/html",
    ".svg": "image/svg+xml",
    ".json": "application/json",
    ".webmanifest": "application/manifest+json",
    ".woff2": "font/woff2",
    ".map": "application/json",
}
router = APIRouter(include_in_schema=False)


@dataclass(frozen=True)
class _File:
    content: bytes
    media_type: str
    etag: str


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
    """A name is looked up among the files there are; it never becomes a path."""
    place = _files().get(name)
    if place is None:
        raise NotFound("There is no such file in the dashboard.")
    file = _read(place)
    headers = {
        "ETag": file.etag,
        "Cache-Control": "no-cache",
        "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    }
    if file.etag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(file.content, headers=headers, media_type=file.media_type)


@cache
def _files() -> dict[str, Traversable]:
    found: dict[str, Traversable] = {}
    waiting = [("", resources.files("server") / "web")]
    while waiting:
        prefix, folder = waiting.pop()
        for entry in folder.iterdir():
            if entry.is_dir():
                waiting.append((f"{prefix}{entry.name}/", entry))
            elif not entry.name.startswith("."):
                found[prefix + entry.name] = entry
    return found


def _read(place: Traversable) -> _File:
    content = place.read_bytes()
    suffix = "." + place.name.rpartition(".")[2]
    kind = _TYPES.get(suffix) or mimetypes.guess_type(place.name)[0] or "application/octet-stream"
    return _File(content, kind, f'"{hashlib.sha256(content).hexdigest()[:32]}"')
