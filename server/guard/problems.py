"""Problem documents (RFC 9457): renders errors as responses."""

from __future__ import annotations

import json
from typing import Any

from starlette.responses import Response

from server import errors

TYPE_PREFIX = "urn:traind:problem:"
MEDIA_TYPE = "application/problem+json"


def problem(error: errors.TraindError) -> Response:
    """The answer for an error. Never fails: what JSON cannot express is written as text."""
    document: dict[str, Any] = {
        "type": TYPE_PREFIX + error.code,
        "title": error.title,
        "status": error.status,
        "detail": error.detail,
    }
    if error.errors:
        document["errors"] = error.errors
    if error.hint:
        document["hint"] = error.hint
    document |= {k: v for k, v in error.extra.items() if k not in document}
    return Response(_encoded(document), error.status, error.headers, media_type=MEDIA_TYPE)


def _encoded(document: dict[str, Any]) -> bytes:
    try:
        return json.dumps(document, default=str, ensure_ascii=False).encode()
    except UnicodeEncodeError:  # half a surrogate pair: it stays escaped
        return json.dumps(document, default=str).encode()
