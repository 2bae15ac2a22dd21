"""Error classes of the API, each with its stable code, HTTP status and title.

TraindError
├── Invalid              422  the request is well-formed but invalid
├── NotFound             404
│   └── NotOffered       404  a route of another API; the hint names the one to use
├── Conflict             409  not possible in the current state, which it carries
│   ├── IllegalMove      409
│   └── NameTaken        409
├── Forbidden            403  host, origin or site not allowed
├── Unauthorized         401
├── UnsupportedMediaType 415
├── TooLarge             413
├── IdempotencyMismatch  422
├── NotAcceptable        406
├── Busy                 503  the database is locked by another process; has Retry-After
├── Unserved             503  the serving process could not generate a completion
├── StorageBroken        503  the database cannot be read: damaged, or the disk fails
└── DiskFull             507
"""

from __future__ import annotations

from typing import Any


class TraindError(Exception):
    """Base class of API errors. detail: a full sentence. errors: fields by JSON pointer (RFC
    6901)."""

    code = "error"
    status = 500
    title = "Error"

    def __init__(
        self,
        detail: str,
        *,
        hint: str | None = None,
        errors: list[dict[str, str]] | None = None,
        headers: dict[str, str] | None = None,
        **extra: Any,
    ) -> None:
        super().__init__(detail)
        self.detail, self.hint, self.errors = detail, hint, errors or []
        self.headers, self.extra = headers or {}, extra


class Invalid(TraindError):
    code, status, title = "invalid", 422, "The request is not valid"


class NotFound(TraindError):
    code, status, title = "not-found", 404, "Not found"


class NotOffered(NotFound):
    code, title = "not-offered", "Not offered here"


class Conflict(TraindError):
    code, status, title = "conflict", 409, "Not possible now"


class IllegalMove(Conflict):
    code, title = "illegal-move", "Not possible in the present state"


class NameTaken(Conflict):
    code, title = "name-taken", "The name is in use"


class Forbidden(TraindError):
    code, status, title = "forbidden", 403, "This origin is not allowed"


class Unauthorized(TraindError):
    code, status, title = "unauthorized", 401, "A token is required"


class UnsupportedMediaType(TraindError):
    code, status, title = "unsupported-media-type", 415, "The body must be JSON"


class TooLarge(TraindError):
    code, status, title = "too-large", 413, "The body is too large"


class IdempotencyMismatch(TraindError):
    code, status, title = "idempotency-mismatch", 422, "The key was used with another request"


class NotAcceptable(TraindError):
    code, status, title = "not-acceptable", 406, "This representation is not available"


class Busy(TraindError):
    code, status, title = "busy", 503, "Busy, try again"


class Unserved(TraindError):
    code, status, title = "unserved", 503, "No completion was generated"


class StorageBroken(TraindError):
    code, status, title = "storage-broken", 503, "The database cannot be read"


class DiskFull(TraindError):
    code, status, title = "disk-full", 507, "The disk is full"
