"""The pages that `docs/generate.py` writes: complete, and in whole rows."""

from __future__ import annotations

import re
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from server.settings import Settings
from trainer.contract.spec import RunSpec

GENERATE = runpy.run_path(str(Path(__file__).parents[1] / "docs" / "generate.py"))


def test_every_field_of_the_spec_has_a_row_on_its_page() -> None:
    page = "\n".join(GENERATE["spec_page"]())
    schema = RunSpec.model_json_schema()
    documented = list(_documented(page))
    assert sorted(documented) == sorted(_paths(schema, schema["$defs"]))
    assert {"place.engine", "hours.from", "budget.kwh", "optimizer.groups.wte.beta1"} <= set(
        documented
    )


def test_every_setting_has_a_row_on_its_page() -> None:
    page = "\n".join(GENERATE["settings_page"]())
    named = re.findall(r"^\| `TRAIND_(\w+)` \|", page, re.MULTILINE)
    assert named == [name.upper() for name in Settings.model_fields]


@pytest.mark.parametrize("page", ["spec_page", "settings_page"])
def test_a_description_is_one_cell_of_its_row(page: str) -> None:
    rows = [row for line in GENERATE[page]() for row in line.split("\n") if row.startswith("|")]
    assert rows
    assert [row for row in rows if len(re.findall(r"(?<!\\)\|", row)) != 5] == []
    assert [row for row in rows if not row.endswith("|")] == []


def _documented(page: str) -> Iterator[str]:
    """The path of each row: the heading of its table and the name of its field."""
    for section in page.split("\n## ")[1:]:
        title, _, body = section.partition("\n")
        prefix = "" if title == "Top level" else title.strip("`") + "."
        for name in re.findall(r"^\| `(\w+)` \|", body, re.MULTILINE):
            yield prefix + name


def _paths(schema: dict[str, Any], models: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Every field of a JSON schema, with those of the objects inside it."""
    for name, field in schema.get("properties", {}).items():
        yield prefix + name
        for model in _models(field):
            yield from _paths(models[model], models, f"{prefix}{name}.")


def _models(part: Any) -> list[str]:
    if isinstance(part, list):
        return [model for item in part for model in _models(item)]
    if not isinstance(part, dict):
        return []
    if "$ref" in part:
        return [part["$ref"].rsplit("/", 1)[1]]
    return [model for value in part.values() for model in _models(value)]
