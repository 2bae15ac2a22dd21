"""Idempotency-Key: the answer to a POST is stored in the same transaction as its effect.

The same key with the same request gets the same answer, also after a restart; with another request
it is refused. Refusals are not kept: they changed nothing, and a later try may succeed.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field

from pydantic import BaseModel
from sqlalchemy import delete
from sqlalchemy.orm import Session
from starlette.responses import Response
from starlette.types import Scope

from server.database import tables
from server.errors import IdempotencyMismatch, Invalid

KEEP_SECONDS = 86_400.0
_KEY = re.compile(r"[\x21-\x7e]{1,255}\Z")


@dataclass(frozen=True)
class StoredAnswer:
    """The stored answer of a POST, so that a repeat gets the same bytes."""

    status: int
    body: str
    headers: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, model: BaseModel, status: int, **headers: str) -> StoredAnswer:
        return cls(status, model.model_dump_json(), headers)

    def response(self, *, replayed: bool = False) -> Response:
        extra = {"Idempotent-Replayed": "true"} if replayed else {}
        return Response(self.body, self.status, self.headers | extra, media_type="application/json")


@dataclass(frozen=True)
class Key:
    """A key and the fingerprint of the request it came with."""

    key: str
    request_sha256: str


def key_of(scope: Scope, body: bytes) -> Key | None:
    """The key of a request, None without one. Raises Invalid."""
    given = [v for name, v in scope["headers"] if name.lower() == b"idempotency-key"]
    if not given:
        return None
    key = given[0].decode("latin-1")
    if len(given) > 1 or not _KEY.match(key):
        raise Invalid(
            "An Idempotency-Key is one header of 1 to 255 printable ASCII characters.",
            hint="Use a new UUID for each operation.",
        )
    # Bodies are compared as JSON: whitespace and key order do not matter.
    canonical = json.dumps(json.loads(body), sort_keys=True).encode() if body else b""
    parts = [scope["method"].encode(), scope["path"].encode(), scope["query_string"], canonical]
    return Key(key, hashlib.sha256(b"\0".join(parts)).hexdigest())


def stored(session: Session, key: Key, now: float) -> StoredAnswer | None:
    """The kept answer, None when the key is new. Raises IdempotencyMismatch."""
    row = session.get(tables.IdempotencyKey, key.key)
    if row is None or row.created_at < now - KEEP_SECONDS:
        return None
    if row.request_sha256 != key.request_sha256:
        raise IdempotencyMismatch(
            "This Idempotency-Key was already used with another request.",
            hint="Use a new key for each new request, and the same one only to repeat it.",
        )
    return StoredAnswer(row.status, row.body, dict(row.headers))


def store(session: Session, key: Key, answer: StoredAnswer, now: float) -> None:
    """Store `answer` for a day, and delete older ones."""
    session.execute(
        delete(tables.IdempotencyKey).where(tables.IdempotencyKey.created_at < now - KEEP_SECONDS)
    )
    session.merge(
        tables.IdempotencyKey(
            key=key.key,
            request_sha256=key.request_sha256,
            status=answer.status,
            headers=answer.headers,
            body=answer.body,
            created_at=now,
        )
    )
