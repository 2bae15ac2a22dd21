"""A run spec from a file, a pipe and --set: the body that `run` and `plan` send."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from server.cli import output

_EXPONENT = re.compile(r"[-+]?(?:\d[\d_]*\.?[\d_]*|\.\d[\d_]*)[eE][-+]?\d+\Z")
# Paths in a spec; a file's relative ones are meant from where the file lies, not from wherever
# the daemon was started.
_PATHS = (("data", "path"), ("data", "tokenizer", "path"), ("evaluate", "core_bundle"))


def read_spec(
    source: str | None,
    settings: list[str],
    *,
    name: str | None = None,
    preset: str | None = None,
) -> dict[str, Any]:
    """The body: the file's content, then --set, --preset and --name over it."""
    base = Path.cwd() if source in (None, "-") else Path(str(source)).expanduser().resolve().parent
    body = _parsed(source) if source else {}
    _make_absolute(body, base)
    said: dict[str, Any] = {}
    for setting in settings:
        _set(said, setting)
    _make_absolute(said, Path.cwd())
    _merge(body, said)
    if preset:
        body["preset"] = preset
    if name:
        body["name"] = name
    try:
        json.dumps(body, allow_nan=False)
    except (TypeError, ValueError) as error:
        output.usage(f"the spec holds something JSON cannot: {error}")
    return body


def _parsed(source: str | None) -> dict[str, Any]:
    import yaml

    text = _text(str(source))
    try:
        body = _read(text)  # JSON is YAML as well
    except yaml.YAMLError as error:
        output.usage(f"{source} is neither YAML nor JSON: {error}")
    if body is None:
        return {}
    if not isinstance(body, dict) or not all(isinstance(key, str) for key in body):
        output.usage(f"{source} must hold a mapping such as 'name: my-run'")
    return body


def _read(text: str) -> Any:
    """YAML in which 1e18, 1e-3 and JSON's 1e-05 are numbers, as everywhere else: PyYAML's rules of
    2005 want a point and a sign in them. Raises YAMLError."""
    import yaml

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+.0123456789"))
    return yaml.load(text, Loader)


def _text(source: str) -> str:
    if source == "-":
        return sys.stdin.read()
    try:
        return Path(source).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        output.usage(
            f"{source} cannot be read: {error}", "give a YAML or JSON file, or - for a pipe"
        )


def _set(body: dict[str, Any], setting: str) -> None:
    """'model.depth=8' as body['model']['depth'] = 8; the value is read as YAML."""
    import yaml

    path, equals, text = setting.partition("=")
    keys = path.split(".")
    if not equals or not all(keys):
        output.usage(f"--set {setting}: expected key.path=value")
    try:
        value = _read(text)
    except yaml.YAMLError:
        value = text
    for key in keys[:-1]:
        body = body.setdefault(key, {})
        if not isinstance(body, dict):
            output.usage(f"--set {setting}: {key} was given a value before")
    body[keys[-1]] = value


def _merge(body: dict[str, Any], over: dict[str, Any]) -> None:
    for key, value in over.items():
        if isinstance(value, dict) and isinstance(body.get(key), dict):
            _merge(body[key], value)
        else:
            body[key] = value


def _make_absolute(body: dict[str, Any], base: Path) -> None:
    for *parents, last in _PATHS:
        part: Any = body
        for parent in parents:
            part = part.get(parent) if isinstance(part, dict) else None
        if isinstance(part, dict) and isinstance(part.get(last), str) and part[last]:
            part[last] = str((base / Path(part[last]).expanduser()).absolute())
