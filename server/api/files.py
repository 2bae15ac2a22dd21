"""File responses: ETag, one byte range, and a timeout for a client that stops reading."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from email.utils import formatdate
from typing import Any, BinaryIO

from fastapi import Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from server.api.disconnect import Stalled, send_until_gone
from server.errors import TraindError
from server.queries.downloads import Download

CHUNK_BYTES = 256_000
STALL_SECONDS = 60.0
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})\Z")


class RangeNotSatisfiable(TraindError):
    code, status, title = "range-not-satisfiable", 416, "Range not satisfiable"


def file_answers(content: dict[str, Any]) -> dict[int | str, dict[str, Any]]:
    """OpenAPI `responses` of a route that calls `send_file`. content: by media type."""
    return {
        200: {"content": content},
        206: {"content": content, "description": "The requested range."},
        304: {"description": "The client's copy, named by If-None-Match, is current."},
    }


def send_file(
    request: Request,
    sent: Download,
    *,
    media_type: str,
    etag: str | None,
    headers: Mapping[str, str],
) -> Response:
    """Send the file, or the range of it that `request` asks for, and close it.

    etag is without quotes; None derives one from size and modification time.
    Raises RangeNotSatisfiable. Call it in a thread.
    """
    file, etag = sent.file, etag or sent.version
    common = {
        "ETag": f'"{etag}"',
        "Accept-Ranges": "bytes",
        "Last-Modified": formatdate(sent.modified_at, usegmt=True),
        **headers,
    }
    try:
        if _is_known(request, etag):
            file.close()
            return Response(status_code=304, headers=common)
        part = _part(request, sent.size_bytes, common)
    except BaseException:
        file.close()
        raise
    if part is None:
        return _Sent(file, 0, sent.size_bytes, 200, common, media_type)
    start, end = part
    common["Content-Range"] = f"bytes {start}-{end - 1}/{sent.size_bytes}"
    return _Sent(file, start, end, 206, common, media_type)


def header_name(name: str) -> str:
    """A file name made safe for the quotes of a Content-Disposition header."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", name)


def _is_known(request: Request, etag: str) -> bool:
    known = request.headers.get("if-none-match", "")
    tags = {tag.strip().removeprefix("W/").strip('"') for tag in known.split(",")}
    return bool(known) and (etag in tags or known.strip() == "*")


def _part(request: Request, size: int, common: Mapping[str, str]) -> tuple[int, int] | None:
    """[start, end) of the Range header; None for the whole file, also if Range is malformed
    (RFC 9110, section 14.2) or If-Range names another version."""
    match = _RANGE.match(request.headers.get("range", "").strip())
    if match is None or match[1] == match[2] == "":
        return None
    only_if = request.headers.get("if-range")
    if only_if is not None and only_if not in (common["ETag"], common["Last-Modified"]):
        return None
    if match[1]:
        start, end = int(match[1]), min(size, int(match[2] or size) + 1)
    else:
        start, end = max(0, size - int(match[2])), size
    if start >= size or (match[2] and match[1] and int(match[2]) < start):
        raise RangeNotSatisfiable(
            f"The file has {size:,} bytes.", headers={"Content-Range": f"bytes */{size}"}
        )
    return start, end


class _Sent(Response):
    """Bytes [start, end) of an open file."""

    def __init__(
        self,
        file: BinaryIO,
        start: int,
        end: int,
        status_code: int,
        headers: Mapping[str, str],
        media_type: str,
    ) -> None:
        super().__init__(status_code=status_code, headers=headers, media_type=media_type)
        self.headers["content-length"] = str(end - start)
        self.file, self.start, self.end = file, start, end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await send_until_gone(receive, self._send_all(send))
        finally:
            self.file.close()

    async def _send_all(self, send: Send) -> None:
        head = {"type": "http.response.start", "status": self.status_code}
        await send({**head, "headers": self.raw_headers})
        left = self.end - self.start
        if left:
            await run_in_threadpool(self.file.seek, self.start)
        while left > 0:
            chunk = await run_in_threadpool(self.file.read, min(CHUNK_BYTES, left))
            if not chunk:
                raise OSError("the file was truncated while it was sent")
            left -= len(chunk)
            try:
                async with asyncio.timeout(STALL_SECONDS):
                    await send({"type": "http.response.body", "body": chunk, "more_body": left > 0})
            except TimeoutError:
                raise Stalled from None
        if self.end == self.start:
            await send({"type": "http.response.body", "body": b"", "more_body": False})
