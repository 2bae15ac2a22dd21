"""Generates the reference pages from the code, so that they cannot differ from it."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from server import errors
from server.api import errors as _api_errors  # noqa: F401 - defines two more error classes
from server.api import files as _files  # noqa: F401
from server.guard import bodies as _bodies  # noqa: F401
from server.machine import devices as _devices  # noqa: F401
from server.metrics import counters
from server.prometheus import text
from server.settings import Settings
from trainer.contract import commands, events, spec
from trainer.contract.metrics import METRICS
from trainer.contract.reasons import Reason


def write(folder: Path) -> None:
    """Write every reference page into `folder`."""
    folder.mkdir(exist_ok=True)
    pages = {
        "spec.md": spec_page(),
        "settings.md": settings_page(),
        "metrics.md": metrics_page(),
        "events.md": events_page(),
        "errors.md": errors_page(),
    }
    for name, page in pages.items():
        path, content = folder / name, "\n".join(page) + "\n"
        if not path.exists() or path.read_text() != content:  # keeps incremental builds quick
            path.write_text(content)


# --- spec and settings ---------------------------------------------------------------------------


def spec_page() -> Iterator[str]:
    yield "# Run spec\n"
    yield (
        "The body of `POST /v1/runs` and the content of a spec file for `traind run`. Every field "
        "but `name` has a default; unknown keys are errors. `GET /docs` shows the same for the "
        "daemon you run.\n"
    )
    yield from _sections("", spec.RunSpec)
    yield "## Presets\n"
    yield "A preset is a set of defaults that the body overrides key by key.\n"
    for name, preset in spec.PRESETS.items():
        yield f"`{name}`\n: {_flat(preset)}\n"


def _sections(path: str, model: type[BaseModel]) -> Iterator[str]:
    """A table of `model`, then those of every model inside it, each under its path in the spec."""
    yield from _model(f"`{path}`" if path else "Top level", model)
    for name, field in model.model_fields.items():
        for inner in _models_in(field.annotation):
            key = field.alias or name
            yield from _sections(f"{path}.{key}" if path else key, inner)


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models_in(part)]


def settings_page() -> Iterator[str]:
    yield "# Daemon settings\n"
    yield (
        "Each setting is an option of `traind serve` and an environment variable; the option "
        "wins.\n"
    )
    yield "| variable | type | default | description |\n|---|---|---|---|"
    for name, field in Settings.model_fields.items():
        default = "" if name in ("data_dir", "trainer_python") else _default(field)
        yield (
            f"| `TRAIND_{name.upper()}` | {_type(field.annotation)} | {default} | "
            f"{_description(field)} |"
        )


def _model(title: str, model: type[BaseModel]) -> Iterator[str]:
    yield f"## {title}\n"
    yield "| field | type | default | description |\n|---|---|---|---|"
    for name, field in model.model_fields.items():
        yield (
            f"| `{field.alias or name}` | {_type(field.annotation)}{_limits(field)} | "
            f"{_default(field)} | {_description(field)} |"
        )
    yield ""


def _description(field: FieldInfo) -> str:
    """The description in one line, so that it stays one cell of the table."""
    return " ".join((field.description or "").split()).replace("|", "\\|")


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined or isinstance(value, BaseModel):
        return ""
    if value is None or isinstance(value, bool):
        return {None: "`null`", True: "`true`", False: "`false`"}[value]
    return f"`{value}`"


def _limits(field: FieldInfo) -> str:
    parts = [*field.metadata, *_metadata(field.annotation)]
    said = [
        f"{sign} {getattr(part, name):,}"
        for part in parts
        for name, sign in (("ge", "≥"), ("gt", ">"), ("le", "≤"), ("lt", "<"))
        if getattr(part, name, None) is not None
    ]
    return f" ({', '.join(dict.fromkeys(said))})" if said else ""


def _metadata(annotation: Any) -> list[Any]:
    """The constraints inside `int | None` and the like."""
    found: list[Any] = []
    if get_origin(annotation) is Annotated:
        for item in get_args(annotation)[1:]:
            found += getattr(item, "metadata", None) or [item]
    elif get_origin(annotation) in (Union, types.UnionType):
        for part in get_args(annotation):
            found += _metadata(part)
    return found


def _type(annotation: Any) -> str:
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(args[0])
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_type(part) for part in args))
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in args)
    if origin in (list, tuple, set, dict):
        return f"{'map' if origin is dict else 'list'} of {_type(args[-1])}"
    if annotation is types.NoneType:
        return "null"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "object"
    names = {str: "text", int: "integer", float: "number", bool: "boolean", Path: "path"}
    return names.get(annotation, getattr(annotation, "__name__", str(annotation)))


def _flat(body: dict[str, Any], prefix: str = "") -> str:
    said = [
        _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else f"`{prefix}{key}: {value}`"
        for key, value in body.items()
    ]
    return ", ".join(said)


# --- metrics, events, errors ---------------------------------------------------------------------


def metrics_page() -> Iterator[str]:
    yield "# Metrics\n"
    yield (
        "`GET /metrics` in Prometheus' text format, prefix `traind_`, base units. Gauges of a run "
        "carry the label `run` and are shown for active runs and for those that ended within the "
        "hour. Counters come from the database: neither a replay nor a restart moves them back.\n"
    )
    yield "## Curves\n"
    yield "Keys of `GET /v1/runs/{run}/metrics`, in the order of the registry.\n"
    yield "| key | unit | meaning |\n|---|---|---|"
    for metric in METRICS:
        yield f"| `{metric.key}` | {metric.unit} | {metric.description} |"
    yield ""
    yield "## Gauges per run\n"
    yield from _metrics((name, help_text) for name, help_text, _ in text._FAMILIES)
    yield "## Counters\n"
    yield from _metrics(text._COUNTERS.items())
    yield "## Histograms per run\n"
    yield from _metrics(text._HISTOGRAMS.items())
    for name, bounds in counters.BUCKETS.items():
        yield f"Buckets of `traind_{name}`: {', '.join(str(bound) for bound in bounds)} seconds.\n"


def _metrics(rows: typing.Iterable[tuple[str, str]]) -> Iterator[str]:
    yield "| metric | meaning |\n|---|---|"
    for name, help_text in rows:
        yield f"| `traind_{name}` | {help_text} |"
    yield ""


def events_page() -> Iterator[str]:
    yield "# Journal records, commands and reasons\n"
    yield (
        "A trainer or job reports in its outbox, one JSON record per line, and takes commands from "
        "its inbox in the same way. Times are unix seconds, sizes bytes.\n"
    )
    yield "## Records (outbox)\n"
    yield from _records(events, events.TrainerEvent)
    yield "## Commands (inbox)\n"
    yield from _records(commands, BaseModel)
    yield "## Reasons\n"
    yield "| reason | sentence | what to do |\n|---|---|---|"
    for reason in Reason:
        yield f"| `{reason}` | {reason.sentence} | {reason.advice} |"


def _records(module: types.ModuleType, base: type[BaseModel]) -> Iterator[str]:
    yield "| kind | fields | meaning |\n|---|---|---|"
    for model in vars(module).values():
        if not (isinstance(model, type) and issubclass(model, base)):
            continue
        kind = model.model_fields.get("kind")
        if kind is None or kind.is_required():
            continue
        fields = ", ".join(f"`{name}`" for name in model.model_fields if name != "kind")
        said = " ".join((model.__doc__ or "").split()) if "__doc__" in vars(model) else ""
        yield f"| `{kind.default}` | {fields} | {said} |"
    yield ""


def errors_page() -> Iterator[str]:
    yield "# Errors\n"
    yield (
        "Every refusal is a problem document (RFC 9457, `application/problem+json`) with `type`, "
        "`title`, `status`, `detail` and, where they help, `errors` (pointers to fields), `hint`, "
        "`state` and `legal`. `type` is `urn:traind:problem:` and the code below.\n"
    )
    yield "| code | status | title |\n|---|---|---|"
    for error in sorted(_classes(errors.TraindError), key=lambda e: (e.status, e.code)):
        yield f"| `{error.code}` | {error.status} | {error.title} |"


def _classes(base: type[errors.TraindError]) -> Iterator[type[errors.TraindError]]:
    for error in base.__subclasses__():
        if "code" in vars(error):
            yield error
        yield from _classes(error)
