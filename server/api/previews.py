"""The preview of an extend as JSON or, where Accept likes that better, as an SVG picture."""

from __future__ import annotations

from typing import Any

from fastapi import Request
from starlette.responses import Response

from server.api.deps import negotiate
from server.reporting import preview
from trainer.contract.extend import ExtendPreview

JSON, SVG = "application/json", "image/svg+xml"
POLICY = "default-src 'none'; style-src 'unsafe-inline'; sandbox"
OFFERED: dict[str, Any] = {"content": {SVG: {"schema": {"type": "string"}}}}


def is_wanted(request: Request, *, is_offered: bool) -> bool:
    """Whether the answer is the picture. Raises NotAcceptable for a type that is not offered."""
    return negotiate(request, *((JSON, SVG) if is_offered else (JSON,))) == SVG


def drawn(told: Response, run_name: str, shown: ExtendPreview | None) -> Response:
    """The picture of what `told` says. An Idempotency-Key keeps the words, whatever was wanted."""
    replayed = {k: v for k, v in told.headers.items() if k == "idempotent-replayed"}
    headers = {"Vary": "Accept", "Content-Security-Policy": POLICY} | replayed
    return Response(preview.svg(run_name, shown), headers=headers, media_type=SVG)
