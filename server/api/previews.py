"""Preview of an extend as JSON or, by Accept, as SVG or PNG."""

from __future__ import annotations

from typing import Any

from fastapi import Request
from starlette.responses import Response

from server.api.deps import negotiate
from server.reporting import png, preview
from trainer.contract.extend import ExtendPreview

JSON, SVG, PNG = "application/json", "image/svg+xml", "image/png"
POLICY = "default-src 'none'; style-src 'unsafe-inline'; sandbox"
OFFERED: dict[str, Any] = {
    "content": {
        SVG: {"schema": {"type": "string"}},
        PNG: {"schema": {"type": "string", "format": "binary"}},
    }
}


def picture_type(request: Request, *, is_offered: bool) -> str | None:
    """The media type of the requested picture; None for JSON. Raises NotAcceptable for a type that
    is not offered, such as PNG without resvg.
    """
    pictures = (SVG, *((PNG,) if png.is_possible() else ())) if is_offered else ()
    liked = negotiate(request, JSON, *pictures)
    return None if liked == JSON else liked


def picture_response(
    media: str, response: Response, run_name: str, shown: ExtendPreview | None
) -> Response:
    """`response` as a picture. An Idempotency-Key stores the JSON, also for a picture."""
    replayed = {k: v for k, v in response.headers.items() if k == "idempotent-replayed"}
    headers = {"Vary": "Accept", "Content-Security-Policy": POLICY} | replayed
    svg = preview.svg(run_name, shown)
    content = png.render(svg) if media == PNG else svg
    return Response(content, headers=headers, media_type=media)
