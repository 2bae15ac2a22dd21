"""Run specs from a file, stdin and --set: the body that `run` and `plan` send; and --place."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, Literal

from server.cli import output, spec_text

# Paths in a spec. A relative path in a file is relative to the file's folder, not to the daemon's
# working directory.
_PATHS = (("data", "path"), ("data", "tokenizer", "path"), ("evaluate", "core_bundle"))
_PLACE_NUMBERS = frozenset({"nodes", "save_seconds", "cpus_per_task"})


def read_spec(
    source: str | None,
    settings: list[str],
    *,
    name: str | None = None,
    preset: str | None = None,
) -> dict[str, Any]:
    """The request body: the file's content, overridden by --set, --preset and --name."""
    base = (
        Path.cwd()
        if source in (None, "-")
        else Path(os.path.expanduser(str(source))).resolve().parent
    )
    body = _parsed(source) if source else {}
    _make_absolute(body, base)
    overrides: dict[str, Any] = {}
    for setting in settings:
        _set(overrides, setting)
    _make_absolute(overrides, Path.cwd())
    _merge(body, overrides)
    if preset:
        body["preset"] = preset
    if name:
        body["name"] = name
    return body


def read_place(given: list[str]) -> dict[str, Any] | Literal["local"] | None:
    """Parse `--place` of a resume: a word, or keys of a Slurm job with text values, as for
    sbatch."""
    if not given:
        return None
    if given == ["local"]:
        return "local"
    place: dict[str, Any] = {"engine": "slurm"}
    for setting in given:
        key, equals, text = setting.partition("=")
        if key in place:
            output.usage(f"--place {setting}: {key} is given twice")
        if equals and key:
            place[key] = _of_place(key, text)
        elif setting != "slurm":
            output.usage(
                f"--place {setting}: expected slurm or key=value; local cannot be combined"
            )
    return place


def _of_place(key: str, text: str) -> int | str | list[str]:
    if key == "modules":
        return text.split(",")
    is_number = key in _PLACE_NUMBERS and text.isascii() and text.isdigit()
    return int(text) if is_number else text


def _parsed(source: str | None) -> dict[str, Any]:
    try:
        body = spec_text.read(_text(str(source)))
    except spec_text.Unreadable as error:
        output.usage(f"{source} is not valid YAML or JSON: {error}")
    if body is None:
        return {}
    if not isinstance(body, dict):
        output.usage(f"{source} must hold a mapping such as 'name: my-run'")
    return body


def _text(source: str) -> str:
    """Read at most the size limit of a spec: a device or a wrong file may be endless."""
    limit = spec_text.MAX_CHARS + 1
    try:
        if source == "-":
            return sys.stdin.read(limit)
        with Path(os.path.expanduser(source)).open(encoding="utf-8-sig") as file:
            return file.read(limit)
    except (OSError, ValueError) as error:
        output.usage(
            f"{source} cannot be read: {error}", "give a YAML or JSON file, or - for a pipe"
        )


def _set(body: dict[str, Any], setting: str) -> None:
    """'model.depth=8' as body['model']['depth'] = 8; the value is read as YAML."""
    path, equals, text = setting.partition("=")
    keys = path.split(".")
    if not equals or not all(keys):
        output.usage(f"--set {setting}: expected key.path=value")
    try:
        value = spec_text.read(text)
    except spec_text.Unreadable as error:
        if not text.startswith(("{", "[")) and not isinstance(error, spec_text.NotFinite):
            value = text  # a word that contains a colon or a star
        else:
            output.usage(f"--set {path}: {error}")
    for key in keys[:-1]:
        body = body.setdefault(key, {})
        if not isinstance(body, dict):
            output.usage(f"--set {setting}: {key} already has a value")
    if keys[-1] in body:
        output.usage(f"--set {path}: given twice")
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
            part[last] = str((base / Path(os.path.expanduser(part[last]))).absolute())
