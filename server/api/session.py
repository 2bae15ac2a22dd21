"""Browser sessions: the token is exchanged for a cookie, since event streams, downloads and pages
carry no headers.
"""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from server.api.deps import StrictRoute
from server.guard.access import COOKIE, Policy, session_of
from server.guard.tokens import SESSION_SECONDS

router = APIRouter(prefix="/v1/session", tags=["system"], route_class=StrictRoute)


@router.post("", status_code=204, response_class=Response)
def log_in(request: Request) -> Response:
    """Exchange the bearer token (checked before this runs) for a session cookie.

    If no token is required, no cookie is set. An Idempotency-Key is not stored here: the
    response is a secret.
    """
    policy: Policy = request.app.state.policy
    response = Response(status_code=204)
    if policy.tokens is not None:
        response.set_cookie(
            COOKIE,
            policy.tokens.open_session(),
            max_age=SESSION_SECONDS,
            httponly=True,
            samesite="strict",
            secure=request.url.scheme == "https",
        )
    return response


@router.delete("", status_code=204, response_class=Response)
def log_out(request: Request) -> Response:
    """Log out: end the session of this cookie, in the daemon and in the browser."""
    policy: Policy = request.app.state.policy
    session = session_of(request.scope)
    if policy.tokens is not None and session is not None:
        policy.tokens.close_session(session)
    response = Response(status_code=204)
    response.delete_cookie(COOKIE, httponly=True, samesite="strict")
    return response
