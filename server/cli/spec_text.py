"""Strict YAML and JSON parser of spec files: only what JSON can express, no duplicate keys.

PyYAML follows YAML of 2005, in which `010` is 8, `1:30` is 90, `no` is false and a date is no text:
here numbers are JSON's (with `1_000` and `1e18`), booleans are true and false, all else is text.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

MAX_CHARS = 4_000_000
_INTEGER = re.compile(r"[-+]?(?:0|[1-9][0-9_]*)\Z")
_FLOAT = re.compile(
    r"(?:[-+]?(?:[0-9][0-9_]*)?\.?[0-9_]*(?:[eE][-+]?[0-9]+)|[-+]?(?:[0-9][0-9_]*)?\.[0-9_]+"
    r"|[-+]?[0-9][0-9_]*\.|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))\Z"
)
_BOOLEAN = re.compile(r"(?:true|True|TRUE|false|False|FALSE)\Z")
_NULL = re.compile(r"(?:~|null|Null|NULL|)\Z")


class Unreadable(Exception):
    """The text is not a spec; the message gives place and cause."""


class NotFinite(Unreadable):
    """A number that JSON cannot express: NaN or an infinity."""


def read(text: str) -> Any:
    """The value of a document. Raises Unreadable."""
    if len(text) > MAX_CHARS:
        raise Unreadable(f"it is longer than {MAX_CHARS:,} characters")
    try:
        value = _as_json(text)
    except _NotJson:
        value = _as_yaml(text)
    except RecursionError:
        raise Unreadable("it is nested too deeply") from None
    _require_json(value)
    return value


class _NotJson(Exception):
    """Not JSON, so it may be YAML."""


def _as_json(text: str) -> Any:
    """JSON by itself: YAML has no tabs, and another idea of escapes."""
    try:
        return json.loads(text, object_pairs_hook=_once)
    except json.JSONDecodeError:
        raise _NotJson from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for key, value in pairs:
        if key in made:
            raise Unreadable(f"the key '{key}' appears twice")
        made[key] = value
    return made


def _as_yaml(text: str) -> Any:
    import yaml

    try:
        return yaml.load(text, _loader())
    except yaml.YAMLError as error:
        raise Unreadable(" ".join(str(error).split())) from None
    except RecursionError:
        raise Unreadable("it is nested too deeply") from None
    except ValueError as error:  # a number of too many digits
        raise Unreadable(str(error)) from None


def _loader() -> type:
    import yaml

    class Loader(yaml.SafeLoader):
        yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - PyYAML's own way

        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                event = self.peek_event()
                raise Unreadable(f"{_place(event.start_mark)}: aliases (*name) are not supported")
            return super().compose_node(parent, index)

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            seen: set[Any] = set()
            for key_node, _ in node.value:
                key = self.construct_object(key_node, deep=True)
                where = _place(key_node.start_mark)
                if not isinstance(key, str):
                    raise Unreadable(f"{where}: the key {key_node.value!r} is not text: quote it")
                if key in seen:
                    raise Unreadable(f"{where}: the key '{key}' appears twice")
                seen.add(key)
            return super().construct_mapping(node, deep)

    for tag, pattern, first in (
        ("bool", _BOOLEAN, "tTfF"),
        ("int", _INTEGER, "-+0123456789"),
        ("float", _FLOAT, "-+.0123456789"),
        ("null", _NULL, ["~", "n", "N", ""]),
    ):
        Loader.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", pattern, list(first))
    return Loader


def _place(mark: Any) -> str:
    return f"line {mark.line + 1} column {mark.column + 1}"


def _require_json(value: Any) -> None:
    """Raises Unreadable with the field for what JSON cannot express: infinities, sets, bytes."""
    waiting: list[tuple[str, Any]] = [("", value)]
    while waiting:
        field, item = waiting.pop()
        name = field or "the spec"
        if isinstance(item, dict):
            waiting += [(f"{field}.{key}" if field else str(key), v) for key, v in item.items()]
        elif isinstance(item, list):
            waiting += [(f"{field}.{index}", v) for index, v in enumerate(item)]
        elif isinstance(item, str) and not _is_utf8(item):
            raise Unreadable(f"{name}: text holds half a surrogate pair (\\ud800 to \\udfff)")
        elif isinstance(item, float) and not math.isfinite(item):
            word = "nan" if math.isnan(item) else f"{'-' if item < 0 else ''}.inf"
            raise NotFinite(f"{name}: {word} is not a number that a spec may contain")
        elif not isinstance(item, str | int | float | bool | None):
            kind = type(item).__name__
            raise Unreadable(f"{name}: a {kind} is not allowed in a spec")


def _is_utf8(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
