"""Paging: one page of a list in order of time, and the cursor of the next one."""

from __future__ import annotations

import base64
import binascii
import json
from typing import Any

from sqlalchemy import Select, and_, or_

from server.errors import Invalid

MAX_PAGE = 1_000


def paged(query: Select[Any], at: Any, key: Any, after: str | None, newest: bool) -> Select[Any]:
    """Limit a query to the page after `after`, in order of time. Raises Invalid."""
    if after is not None:
        seconds, last = _read_cursor(after)
        if newest:
            query = query.where(or_(at < seconds, and_(at == seconds, key < last)))
        else:
            query = query.where(or_(at > seconds, and_(at == seconds, key > last)))
    return query.order_by(at.desc(), key.desc()) if newest else query.order_by(at, key)


def cursor(seconds: float, key: str) -> str:
    """Opaque cursor of the page after the row with that time and key."""
    return base64.urlsafe_b64encode(json.dumps([seconds, key]).encode()).decode().rstrip("=")


def _read_cursor(text: str) -> tuple[float, str]:
    try:
        raw = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
        seconds, key = json.loads(raw)
        return float(seconds), str(key)
    except (ValueError, TypeError, binascii.Error, RecursionError) as error:
        raise Invalid(
            "`after` is not the `next` of a page",
            errors=[{"pointer": "/after", "detail": "use the `next` of the previous page"}],
        ) from error
