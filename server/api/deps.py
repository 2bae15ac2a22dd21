"""Request dependencies: settings, database, idempotent actions, content negotiation.

A handler parses, calls one function and returns. `Act.once` runs the effect in one transaction,
which also stores its response if the request carries an Idempotency-Key.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Annotated, Any

from fastapi import Depends, Path, Query, Request
from fastapi.routing import APIRoute
from sqlalchemy.orm import Session
from starlette.responses import Response

from server.database.db import Database
from server.domain.states import DOORS
from server.errors import Invalid, NotAcceptable
from server.guard import bodies, idempotency
from server.guard.idempotency import StoredAnswer
from server.settings import Settings
from trainer.contract.rundir import CHECKPOINT_PATTERN
from trainer.contract.text import printable

RAW_BODY = "traind.body"
DOOR_HEADER = "traind-client"
ID_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
MAX_ID = 2**63 - 1

RunRef = Annotated[str, Path(pattern=ID_PATTERN, description="A run's id or name.")]
GroupRef = Annotated[str, Path(pattern=ID_PATTERN, description="A group's id or name.")]
JobRef = Annotated[str, Path(pattern=ID_PATTERN, description="A job's id.")]
CheckpointRef = Annotated[
    str, Path(pattern=CHECKPOINT_PATTERN, description="step-NNNNNNNNN-aAAAA: step and attempt.")
]
Limit = Annotated[int, Query(ge=1, le=1000)]
Superseded = Annotated[bool, Query(description="Include records that a later attempt replaced.")]


class StrictRoute(APIRoute):
    """Parses the body with our strict parser before FastAPI does."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        lists = {p.alias for p in self.dependant.query_params if _takes_many(p)}

        async def strict(request: Request) -> Response:
            _refuse_repeated(request, lists)
            raw = await request.body() if request.method != "GET" else b""
            request.scope[RAW_BODY] = raw
            if raw:
                request._json = bodies.parse(raw)  # where request.json() caches its result
            return await handle(request)

        return strict


def _takes_many(parameter: Any) -> bool:
    return "list[" in str(parameter.field_info.annotation)


def _refuse_repeated(request: Request, lists: set[str]) -> None:
    """Refuse a repeated query parameter, which is ambiguous, as a repeated key of a body is."""
    counted = Counter(key for key, _ in request.query_params.multi_items() if key not in lists)
    for key, times in counted.items():
        if times > 1:
            name = printable(key)
            detail = f"this parameter is given {times} times"
            raise Invalid(f"{name}: {detail}.", errors=[{"pointer": f"?{name}", "detail": detail}])


def database(request: Request) -> Database:
    return request.app.state.db


def settings(request: Request) -> Settings:
    return request.app.state.settings


Db = Annotated[Database, Depends(database)]
Conf = Annotated[Settings, Depends(settings)]


class Act:
    """Execute a request once (idempotently), in one transaction, and notify streams and
    supervisor."""

    def __init__(self, request: Request, db: Db) -> None:
        self.db, self.request = db, request
        self.key = idempotency.key_of(request.scope, request.scope.get(RAW_BODY, b""))
        self.now = time.time()
        self.door = _door(request)

    def kept(self) -> Response | None:
        """The response stored for this key, for effects that take too long for a transaction."""
        if self.key is None:
            return None
        with self.db.read() as session:
            kept = idempotency.stored(session, self.key, self.now)
        return kept.response(replayed=True) if kept else None

    def keep(self, answer: StoredAnswer) -> None:
        """Store `answer` for this key."""
        assert self.key is not None
        with self.db.write() as session:
            idempotency.store(session, self.key, answer, self.now)

    def once(self, effect: Callable[[Session], StoredAnswer]) -> Response:
        """Run `effect` and return its response, or return the stored one if the key was used
        before."""
        with self.db.write() as session:
            if self.key and (kept := idempotency.stored(session, self.key, self.now)):
                return kept.response(replayed=True)
            answer = effect(session)
            if self.key:
                idempotency.store(session, self.key, answer, self.now)
        return answer.response()


def _door(request: Request) -> str:
    """The client program (door) of a request, by its header; "api" if it is none of ours."""
    asked = request.headers.get(DOOR_HEADER, "")
    return asked if asked in DOORS else "api"


Doing = Annotated[Act, Depends(Act)]


def negotiate(request: Request, *offered: str) -> str:
    """The media type among `offered` that the Accept header prefers; the first without a header.

    Raises NotAcceptable if the header accepts none.
    """
    accept = ",".join(request.headers.getlist("accept")) or "*/*"
    liked = max(offered, key=lambda media: _quality(accept, media))  # the first of equals
    if _quality(accept, liked)[0] <= 0:
        raise NotAcceptable(f"Offered here: {', '.join(offered)}.")
    return liked


def _quality(accept: str, media: str) -> tuple[float, int]:
    """(q, specificity) of `media` in an Accept header (RFC 9110, section 12.5.1)."""
    best = (0.0, 0)
    exactness = {media: 3, media.partition("/")[0] + "/*": 2, "*/*": 1}
    for part in accept.lower().split(","):
        name, *parameters = (piece.strip() for piece in part.split(";"))
        exact = exactness.get(name, 0)
        if exact > best[1]:
            best = (_weight(parameters), exact)
    return best


def _weight(parameters: list[str]) -> float:
    for parameter in parameters:
        key, _, value = parameter.partition("=")
        if key.strip() == "q":
            try:
                return min(1.0, max(0.0, float(value)))
            except ValueError:
                return 0.0
    return 1.0
