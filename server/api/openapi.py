"""The OpenAPI document: FastAPI's own, with the error responses of every route added."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from server.api import vocabulary
from server.guard.problems import MEDIA_TYPE
from server.schemas.problem import Problem
from trainer.contract.spec import RunSpec

STATUS_DESCRIPTIONS = {
    401: "The token is missing or wrong.",
    403: "The host, origin or site is not allowed.",
    404: "There is nothing with that name or id.",
    406: "None of the representations in Accept is available.",
    408: "The body did not arrive in time.",
    409: "Not possible in this state; `legal` lists the verbs that are.",
    413: "The body is too large.",
    415: "The body is not JSON; `hint` has a curl line that works.",
    416: "The requested range is outside the file.",
    422: "Well-formed but invalid; see `errors` for the fields and accepted values.",
    503: "Busy; try again after Retry-After.",
    507: "The disk is full.",
}
EVERYWHERE = (401, 403, 413, 422, 503)
WITH_BODY = (408, 415)
CHANGING = (507,)
_TAGS = [
    {"name": "runs", "description": "Train one model: create a run, control it, extend it."},
    {"name": "groups", "description": "Run one spec in many variations, and compare the results."},
    {"name": "history", "description": "The history of a run: phases, attempts, metrics, events."},
    {"name": "checkpoints", "description": "Immutable, verified snapshots."},
    {"name": "jobs", "description": "Bounded work that is not training."},
    {"name": "completions", "description": "Checkpoints behind OpenAI's completions API."},
    {"name": "system", "description": "The daemon and its machine."},
]


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """OpenAPI `responses` for errors that only some routes return."""
    return {status: {"description": STATUS_DESCRIPTIONS[status]} for status in statuses}


def install(app: FastAPI) -> None:
    """Complete the document of `app.openapi()`. It is built at each call; `docs` caches what it
    serves."""
    app.openapi = lambda: _build(app)


def _build(app: FastAPI) -> dict[str, Any]:
    document = get_openapi(
        title=app.title,
        version=app.version,
        description=app.description,
        routes=app.routes,
        tags=_TAGS,
        separate_input_output_schemas=False,
    )
    schemas = document["components"]["schemas"]
    schemas.pop("HTTPValidationError", None)
    schemas.pop("ValidationError", None)
    _add(schemas, "Problem", Problem.model_json_schema(ref_template=_REF))
    _add(schemas, "RunRequest", _run_request())
    vocabulary.describe(schemas)
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            _complete(method, operation)
            if path in ("/v1/runs", "/v1/plan") and method == "post":
                _set_body(operation, path)
    document["components"]["securitySchemes"] = {
        "token": {"type": "http", "scheme": "bearer"},
        "session": {"type": "apiKey", "in": "cookie", "name": "traind_session"},
    }
    document["security"] = [{}, {"token": []}, {"session": []}]
    return document


_REF = "#/components/schemas/{model}"


def _complete(method: str, operation: dict[str, Any]) -> None:
    """Add the summary, and the problem responses of the layers below the handler, to every
    operation."""
    operation["summary"] = _first_sentence(operation["description"])
    responses = operation["responses"]
    extra = [*EVERYWHERE]
    if method != "get":
        extra += [*WITH_BODY, *CHANGING]
    if any(parameter["in"] == "path" for parameter in operation.get("parameters", [])):
        extra.append(404)
    for status in extra:
        responses[str(status)] = {"description": STATUS_DESCRIPTIONS[status]}
    for status, response in responses.items():
        if int(status) >= 400:
            response["content"] = {MEDIA_TYPE: {"schema": {"$ref": _REF.format(model="Problem")}}}
    operation["responses"] = dict(sorted(responses.items()))
    if method == "post":
        operation.setdefault("parameters", []).append(
            {
                "name": "Idempotency-Key",
                "in": "header",
                "required": False,
                "description": "For a day, a repeated request gets the first response again.",
                "schema": {"type": "string", "pattern": "^[!-~]{1,255}$"},
            }
        )


def _first_sentence(text: str) -> str:
    return " ".join(text.split("\n\n")[0].split()).partition(". ")[0].removesuffix(".")


def _set_body(operation: dict[str, Any], path: str) -> None:
    spec = {"$ref": _REF.format(model="RunRequest")}
    extend = {
        "type": "object",
        "required": ["run", "extend"],
        "additionalProperties": False,
        "properties": {
            "run": {"type": "string"},
            "extend": {"$ref": _REF.format(model="ExtendRequest")},
        },
    }
    content = operation["requestBody"]["content"]["application/json"]
    content["schema"] = {"oneOf": [spec, extend]} if path == "/v1/plan" else spec
    content["example"] = {"name": "demo"}


def _run_request() -> dict[str, Any]:
    """The schema of a spec in a request: the preset fills in missing fields, including the
    horizon."""
    schema = RunSpec.model_json_schema(ref_template=_REF)
    schema["required"] = ["name"]
    schema["title"] = "RunRequest"
    return schema


def _add(schemas: dict[str, Any], name: str, schema: dict[str, Any]) -> None:
    for other, definition in schema.pop("$defs", {}).items():
        schemas.setdefault(other, definition)
    schemas[name] = schema
