"""Error handlers: every error, ours and the framework's, becomes a problem document."""

from __future__ import annotations

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from server import errors
from server.guard.problems import problem
from server.guard.validation import explain, model_in
from trainer.contract.text import printable

INTERNAL = "The daemon failed to handle this request. Nothing was changed."
INTERNAL_HINT = "The daemon's log has the details. Training is not affected."


class MethodNotAllowed(errors.TraindError):
    code, status, title = "method-not-allowed", 405, "Method not allowed"


class Internal(errors.TraindError):
    code, status, title = "internal", 500, "Internal error of the daemon"


def install(app: FastAPI) -> None:
    """Render every error of `app` as a problem document, ours and the framework's."""

    @app.exception_handler(errors.TraindError)
    async def ours(_: Request, error: errors.TraindError) -> Response:
        return problem(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return problem(from_validation(request, error))

    @app.exception_handler(HTTPException)
    async def framework(request: Request, error: HTTPException) -> Response:
        return problem(_from_framework(request, error))

    @app.exception_handler(Exception)
    async def unexpected(_: Request, __: Exception) -> Response:
        return problem(Internal(INTERNAL, hint=INTERNAL_HINT))


def from_validation(request: Request, error: RequestValidationError) -> errors.TraindError:
    """Translate FastAPI's validation errors into a problem document."""
    findings = error.errors()
    if findings and all(finding["loc"][:1] == ("path",) for finding in findings):
        what = ", ".join(printable(str(finding.get("input"))) for finding in findings)
        return errors.NotFound(f"There is nothing named {what}.")
    field = getattr(request.scope.get("route"), "body_field", None)
    return explain(findings, error.body, model_in(field.field_info.annotation) if field else None)


def _from_framework(request: Request, error: HTTPException) -> errors.TraindError:
    path = printable(request.url.path, 200)
    if error.status_code == 404:
        return errors.NotFound(f"There is no {path}.", hint="GET /docs lists every endpoint.")
    if error.status_code == 405:
        allowed = ", ".join(allowed_methods(request))
        return MethodNotAllowed(
            f"{request.method} is not allowed at {path}; allowed: {allowed}.",
            headers={"Allow": allowed},
        )
    if error.status_code == 503:
        return errors.Busy(str(error.detail), headers=dict(error.headers or {}))
    return errors.Invalid(printable(error.detail, 400))


def allowed_methods(request: Request) -> list[str]:
    """Every method that some route offers at the path of `request`."""
    found: set[str] = set()
    for route in request.app.state.routes:
        if route.path_regex.match(request.scope["path"]):
            found |= route.methods or set()
    return sorted(found | {"HEAD"} if "GET" in found else found)
