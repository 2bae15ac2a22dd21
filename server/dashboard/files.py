"""Files of the dashboard by name: read from the package, compressed once, cached.

A first visit loads four: the page, an early script, and two bundles (`page.js`, `page.css`). The
modules are also there one by one.
"""

from __future__ import annotations

import gzip
import hashlib
import mimetypes
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

from server.dashboard import bundle
from server.errors import NotFound

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


_known: dict[str, CachedFile] = {}


def get(name: str) -> CachedFile:
    """The file of this name, read again if it changed on the disk. Raises NotFound."""
    parts = _parts(name)
    stamp = tuple(_stamp(names()[part]) for part in parts)
    known = _known.get(name)
    if known is None or known.stamp != stamp:
        known = _known[name] = _made(name, stamp)
    return known


def _parts(name: str) -> Iterable[str]:
    if name == SCRIPT:
        return [part for part in names() if part.endswith(".js")]
    if name == STYLES:
        return STYLE_SHEETS
    if name not in names():
        raise NotFound("There is no such file in the dashboard.")
    return [name]


def _made(name: str, stamp: object) -> CachedFile:
    if name == SCRIPT:
        content = bundle.script(ENTRY, read_text).encode()
    elif name == STYLES:
        content = bundle.styles(STYLE_SHEETS, read_text).encode()
    else:
        content = names()[name].read_bytes()
    suffix = "." + name.rpartition(".")[2]
    kind = _TYPES.get(suffix) or mimetypes.guess_type(name)[0] or "application/octet-stream"
    return CachedFile.of(content, kind, stamp)


def read_text(name: str) -> str:
    """The text of a source file."""
    return names()[name].read_text(encoding="utf-8")


def _stamp(place: Traversable) -> int:
    return place.stat().st_mtime_ns if isinstance(place, Path) else 0


@cache
def names() -> dict[str, Traversable]:
    """The source files by name, which is their path below `server/web`."""
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
