"""A Hugging Face hub in small: the routes that huggingface_hub's downloader uses, from a folder."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlparse


class Mirror:
    """`folder` holds the files of one data set `owner/name`. What was asked is in `requests`."""

    def __init__(self, folder: Path, name: str, revision: str) -> None:
        self.folder, self.name, self.revision = folder, name, revision
        self.requests: list[tuple[str, str, str | None]] = []
        self.cut_after: int | None = None  # bytes after which the connection breaks, once
        self.endpoint = ""
        self.card: dict | None = None
        self.refusal: tuple[int, dict[str, str]] | None = None  # status and headers of every answer

    def info(self, with_files: bool) -> dict:
        siblings = []
        for path in sorted(p for p in self.folder.rglob("*") if p.is_file()):
            sibling: dict = {"rfilename": path.relative_to(self.folder).as_posix()}
            if with_files:
                size = path.stat().st_size
                lfs = {"sha256": _sha256(path), "size": size, "pointerSize": 130}
                sibling |= {"size": size, "blobId": "b" * 40, "lfs": lfs}
            siblings.append(sibling)
        return {
            "_id": "1",
            "id": self.name,
            "sha": self.revision,
            "private": False,
            "disabled": False,
            "gated": False,
            "downloads": 0,
            "likes": 0,
            "tags": [],
            "siblings": siblings,
            **({"cardData": self.card} if self.card else {}),
        }


@contextlib.contextmanager
def serving(mirror: Mirror) -> Iterator[Mirror]:
    """Serve on loopback until the end of the block."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(mirror))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    mirror.endpoint = f"http://127.0.0.1:{server.server_port}"
    try:
        yield mirror
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _handler(mirror: Mirror) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer(body=True)

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def log_message(self, format: str, *args: object) -> None:
            pass

        def _answer(self, body: bool) -> None:
            url = urlparse(self.path)
            mirror.requests.append((self.command, url.path, self.headers.get("Range")))
            if mirror.refusal:
                self._refuse(*mirror.refusal)
            elif url.path.startswith(f"/api/datasets/{mirror.name}"):
                with_files = "blobs" in parse_qs(url.query)
                self._send(json.dumps(mirror.info(with_files)).encode(), body)
            elif url.path.startswith(f"/datasets/{mirror.name}/resolve/"):
                self._send_file(mirror.folder / url.path.split("/", 6)[6], body)
            else:
                self._missing("RepoNotFound")

        def _send(self, content: bytes, body: bool) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if body:
                self.wfile.write(content)

        def _send_file(self, path: Path, body: bool) -> None:
            if not path.exists():
                return self._missing("EntryNotFound")
            content = path.read_bytes()
            first = int((self.headers.get("Range") or "bytes=0-")[6:].split("-")[0])
            rest = content[first:]
            self.send_response(206 if first else 200)
            if first:
                self.send_header(
                    "Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}"
                )
            self.send_header("Content-Length", str(len(rest)))
            self.send_header("ETag", f'"{_sha256(path)}"')
            self.send_header("X-Repo-Commit", mirror.revision)
            self.send_header("Accept-Ranges", "bytes")
            self.end_headers()
            if not body:
                return None
            cut, mirror.cut_after = mirror.cut_after, None
            self.wfile.write(rest[:cut])
            if cut is not None:
                self.close_connection = True
                self.connection.close()
            return None

        def _missing(self, code: str) -> None:
            self._refuse(404, {"X-Error-Code": code})

        def _refuse(self, status: int, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", "0")
            self.end_headers()

    return Handler


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
