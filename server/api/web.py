"""Static files of the dashboard, served from this package.

A first visit loads four files, compressed once and cached: the page, an early script, and two
bundles (`page.js`, `page.css`). The modules are also served one by one.
"""

from __future__ import annotations

import gzip
import hashlib
import mimetypes
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

from fastapi import APIRouter, Request
from starlette.responses import Response

from server.dashboard import bundle
from server.errors import NotFound

CONTENT_SECURITY_POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; object-src 'none'; base-uri 'none'; "
    "form-action 'self'; frame-ancestors 'none'"
)
ENTRY, SCRIPT, STYLES = "app.js", "page.js", "page.css"
STYLE_SHEETS = [
    "styles/tokens.css", "styles/base.css", "styles/layout.css", "styles/components.css",
    "styles/pages.css", "styles/charts.css", "vendor/uplot/uPlot.min.css",
]  # fmt: skip
_TYPES = {".js": "text/javascript", ".mjs": "text/javascript", ".css": "text/css"} | {
    ".html": "text/html",
    ".svg": "image/svg+xml",
    ".json": "application/json",
    ".webmanifest": "application/manifest+json",
    ".woff2": "font/woff2",
    ".map": "application/json",
}
_COMPRESSED_FROM = 500  # bytes; gzip does not shrink a smaller body
_GZIP_WANTED = re.compile(r"\bgzip\b(?!\s*;\s*q=0(\.0*)?\s*(,|$))")
router = APIRouter(include_in_schema=False)


@dataclass(frozen=True)
class CachedFile:
    """A cached file. stamp: identifies its sources; another stamp rebuilds it."""

    stamp: object
    content: bytes
    compressed: bytes
    media_type: str
    etag: str

    @classmethod
    def of(cls, content: bytes, media_type: str, stamp: object = None) -> CachedFile:
        """Compress the content if that makes it shorter by more than gzip's header."""
        is_long = len(content) >= _COMPRESSED_FROM
        compressed = gzip.compress(content, mtime=0) if is_long else content
        etag = hashlib.sha256(content).hexdigest()[:32]
        return cls(stamp, content, compressed, media_type, etag)


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
    return respond(request, _file(name))


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


_known: dict[str, CachedFile] = {}


def _file(name: str) -> CachedFile:
    """The file of this name, read again if it changed on the disk. Raises NotFound."""
    parts = _parts(name)
    stamp = tuple(_stamp(_files()[part]) for part in parts)
    known = _known.get(name)
    if known is None or known.stamp != stamp:
        known = _known[name] = _made(name, stamp)
    return known


def _parts(name: str) -> Iterable[str]:
    if name == SCRIPT:
        return [part for part in _files() if part.endswith(".js")]
    if name == STYLES:
        return STYLE_SHEETS
    if name not in _files():
        raise NotFound("There is no such file in the dashboard.")
    return [name]


def _made(name: str, stamp: object) -> CachedFile:
    if name == SCRIPT:
        content = bundle.script(ENTRY, _text).encode()
    elif name == STYLES:
        content = bundle.styles(STYLE_SHEETS, _text).encode()
    else:
        content = _files()[name].read_bytes()
    suffix = "." + name.rpartition(".")[2]
    kind = _TYPES.get(suffix) or mimetypes.guess_type(name)[0] or "application/octet-stream"
    return CachedFile.of(content, kind, stamp)


def _text(name: str) -> str:
    return _files()[name].read_text(encoding="utf-8")


def _stamp(place: Traversable) -> int:
    return place.stat().st_mtime_ns if isinstance(place, Path) else 0


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
