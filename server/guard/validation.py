"""Validation errors: pydantic's errors as sentences with a JSON pointer."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from server.errors import Invalid
from trainer.contract.spec import NAME_PATTERN
from trainer.contract.text import printable

MAX_ERRORS = 20
MAX_FINDINGS = (
    200  # looked at: a sentence with the nearest known key takes a tenth of a millisecond
)
PATTERNS = {
    NAME_PATTERN: "a name is 1 to 64 letters, digits, '.', '_' or '-', beginning with a letter "
    "or a digit",
    r"^[LS]{1,64}$": "the pattern is made of L (full attention) and S (a short window)",
    r"^(auto|cpu|mps|cuda(:\d{1,3})?)$": "a device is auto, cpu, mps, cuda or cuda:0",
    r"^[a-z][a-z0-9+.-]*://\S+$": "a URL with its scheme, such as https://example.org/hook",
    r"^[A-Za-z0-9._-]+/[A-Za-z0-9._-]+$": "a data set is named owner/name",
    r"^(cpu|cuda:\d{1,3})$": "a device of a run on several is cpu or cuda:0",
    r"^([01]\d|2[0-3]):[0-5]\d$": "a time is written HH:MM, from 00:00 to 23:59",
    r"^(\d{1,3}-)?\d{1,4}(:[0-5]\d){0,2}$": "a time limit is written as Slurm reads it: minutes, "
    "hours:minutes:seconds or days-hours",
    r"^\d{1,9}[KMGT]?$": "memory is a number with K, M, G or T, such as 200G",
    r"^[A-Za-z0-9_][A-Za-z0-9_.@+:,-]{0,127}$": "a name has up to 128 letters, digits "
    "and _.@+:,- and begins with a letter, a digit or _",
    r"^[A-Za-z0-9_\[(][A-Za-z0-9_.,:=@+&|*()\[\]-]{0,255}$": "an expression of node features or "
    "names, such as a100&nvlink or node[1-4]",
    r"^[A-Za-z0-9_][A-Za-z0-9_.+/-]{0,127}$": "a module is named like cuda/12.4",
}


def explain(
    findings: ValidationError | Sequence[Any], body: Any, model: type[BaseModel] | None = None
) -> Invalid:
    """An Invalid with one pointer per wrong field (RFC 6901; `?name` for a query parameter).

    model: the class of `body`, so that an unknown key can be answered with the known ones.
    """
    raw = findings.errors() if isinstance(findings, ValidationError) else findings
    by_pointer: dict[str, list[str]] = {}
    for finding in raw[:MAX_FINDINGS]:
        pointer, place = _pointer(finding, body)
        by_pointer.setdefault(pointer, []).append(_sentence(finding, place, model))
    errors = [
        {"pointer": pointer, "detail": "; or ".join(dict.fromkeys(sentences))}
        for pointer, sentences in list(by_pointer.items())[:MAX_ERRORS]
    ]
    first = f"{_dotted(errors[0]['pointer'])}{errors[0]['detail']}"
    more = len(by_pointer) - 1 + max(0, len(raw) - MAX_FINDINGS)
    detail = first if not more else f"{first} (and {more} more, see errors)"
    return Invalid(detail + ".", errors=errors)


@contextmanager
def explained(body: Any, model: type[BaseModel]) -> Iterator[None]:
    """Convert pydantic's errors of `body` as a `model` to Invalid; other errors pass through."""
    try:
        yield
    except ValidationError as error:
        if error.title != model.__name__:
            raise
        raise explain(error, body, model) from None


def _pointer(finding: Any, body: Any) -> tuple[str, list[str]]:
    """(pointer, path of keys). pydantic mixes names of union members into its locations: only
    what is really in the body, and a key that is missing or unknown at the end, is a key."""
    where, *rest = finding["loc"] or ("body",)
    if where in ("query", "path", "header", "cookie"):
        return f"?{printable(rest[0]) if rest else ''}", []
    keys = rest if where == "body" else list(finding["loc"])
    path: list[str] = []
    here = body
    for index, key in enumerate(keys):
        if key in here if isinstance(here, dict) else _is_index(here, key):
            here = here[key]
        elif not (index == len(keys) - 1 and finding["type"] == "missing"):
            continue
        path.append(printable(str(key)))
    path += (finding.get("ctx") or {}).get("at", ())  # of a sentence about several fields
    escaped = (key.replace("~", "~0").replace("/", "~1") for key in path)
    return "".join(f"/{key}" for key in escaped), path


def _is_index(here: Any, key: Any) -> bool:
    return isinstance(here, list) and isinstance(key, int) and key < len(here)


def _sentence(finding: Any, path: list[str], model: type[BaseModel] | None) -> str:
    kind, context = finding["type"], finding.get("ctx") or {}
    if kind == "missing":
        return "this is required"
    if kind == "extra_forbidden":
        return _unknown_key(path, model)
    if kind == "string_pattern_mismatch" and context.get("pattern") in PATTERNS:
        return PATTERNS[context["pattern"]] + _given(finding, path)
    message = printable(finding["msg"].removeprefix("Value error, "), 400)
    message = message[:1].lower() + message[1:]
    given = finding.get("input")
    if kind in ("value_error", "do_not_fit") or isinstance(given, dict | list):
        return message
    return message + _given(finding, path)


def _given(finding: Any, path: list[str]) -> str:
    """What was given, except an address that may hold a credential."""
    return "" if path[:1] == ["notify"] else f" (given: {printable(finding.get('input'))})"


def _unknown_key(path: list[str], model: type[BaseModel] | None) -> str:
    for key in path[:-1]:
        model = _class_of(model, key)
    if model is None or not path:
        return "this key is not known"
    known = sorted(model.model_fields)
    near = difflib.get_close_matches(path[-1], known, n=1)
    guess = f"did you mean {near[0]}? " if near else ""
    return f"this key is not known: {guess}known here are {', '.join(known)}"


def _class_of(model: type[BaseModel] | None, key: str) -> type[BaseModel] | None:
    field = model.model_fields.get(key) if model else None
    return model_in(field.annotation) if field else None


def model_in(annotation: Any) -> type[BaseModel] | None:
    """The model that an annotation is, or may be; None where there is none."""
    for kind in (annotation, *get_args(annotation)):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
    return None


def _dotted(pointer: str) -> str:
    place = pointer.removeprefix("?") if pointer.startswith("?") else pointer[1:].replace("/", ".")
    return f"{place}: " if place else ""
