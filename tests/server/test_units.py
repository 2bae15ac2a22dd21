"""Every number of the API, specs and settings has its unit in its description."""

from __future__ import annotations

import re
from typing import Any

import pytest

from server.settings import Settings
from tests.server.asgi import Asgi

UNIT = re.compile(
    r"\b(unix seconds|seconds|minutes|hours|days|bytes|(M|G)B|watts?|watt-hours|kWh|kilowatt-hours?"
    r"|joules|degrees|nats|bits per byte|percent|floating-point operations|FLOP(s|/s)?"
    r"|steps?|tokens?|parameters|share|fraction|ratio|multiple|factor|number of|index|characters"
    r"|rows|lines|layers|channels|heads|items|samples|documents|files|epochs|shards"
    r"|devices|threads|streams|groups|completions|points|bins|places?|ranks?|checkpoints|runs|micro-batch(es)?|prompts|examples)\b",
    re.IGNORECASE,
)
# A field whose name ends like this says so in words too.
BY_NAME = {
    "_seconds": "seconds", "_at": "unix seconds", "_bytes": "bytes", "_watts": "watts",
    "_kwh": "kilowatt-hour", "_percent": "percent", "_tokens": "tokens", "_steps": "steps",
}  # fmt: skip
# Numbers without a unit, each with the reason why it has none.
DIMENSIONLESS = {
    "id": "identifies a row",
    "pid": "identifies a process",
    "port": "identifies a port",
    "status": "HTTP status code",
    "attempt": "ordinal, its description says from where it counts",
    "number": "ordinal of an attempt",
    "seed": "chooses random numbers",
    "priority": "order alone, within the limits that its description names",
    "temperature": "divides logits",
    "best_of": "must equal n",
    "lr": "learning rate", "matrix_lr": "learning rate", "embedding_lr": "learning rate",
    "unembedding_lr": "learning rate", "scalar_lr": "learning rate",
    "value_embedding_lr": "learning rate", "resid_lr": "learning rate", "x0_lr": "learning rate",
    "smear_lr": "learning rate",
    "weight_decay": "coefficient of the update",
    "momentum": "coefficient of an average",
    "beta1": "coefficient of an average", "beta2": "coefficient of an average",
    "grad_norm": "norm of numbers without a unit",
    "core": "accuracy, centred on guessing",
    "value": "in the unit of the evaluation's kind",
    "more": "in the units of GET /v1/catalog",
    "alpha": "exponent",
    "depths": "number of layers of each member",
    "prompt": "token ids",
    "digits": "count of decimals",
    "cost": "money, in the currency of the prices", "cost_left": "money, in that currency",
}  # fmt: skip


@pytest.fixture(scope="module")
def numbers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Descriptions of all fields that hold numbers: {"Model.field": description}."""
    asgi = Asgi(tmp_path_factory.mktemp("units"))
    schemas = asgi.get("/openapi.json").json()["components"]["schemas"]
    asgi.close()
    schemas["Settings"] = Settings.model_json_schema()
    return {
        f"{name}.{field}": found.get("description", "")
        for name, schema in schemas.items()
        for field, found in schema.get("properties", {}).items()
        if _is_numeric(found)
    }


def _is_numeric(schema: dict[str, Any]) -> bool:
    """Whether a field holds numbers, or lists or maps of them."""
    inner = [schema.get("items"), schema.get("additionalProperties"), *schema.get("anyOf", [])]
    return schema.get("type") in ("number", "integer") or any(
        _is_numeric(each) for each in inner if isinstance(each, dict)
    )


def test_every_number_has_a_unit_or_a_reason_for_none(numbers: dict[str, str]) -> None:
    assert len(numbers) > 400
    bare = {
        name: description
        for name, description in numbers.items()
        if not UNIT.search(description) and name.partition(".")[2] not in DIMENSIONLESS
    }
    assert bare == {}


def test_a_unit_in_a_name_is_in_the_description(numbers: dict[str, str]) -> None:
    silent = {
        name: description
        for name, description in numbers.items()
        for end, unit in BY_NAME.items()
        if name.endswith(end) and unit.lower() not in description.lower()
    }
    assert silent == {}


def test_what_is_listed_as_dimensionless_exists_and_names_no_unit(numbers: dict[str, str]) -> None:
    bare = {
        n.partition(".")[2] for n, description in numbers.items() if not UNIT.search(description)
    }
    assert sorted(DIMENSIONLESS.keys() - bare) == []


@pytest.mark.parametrize(
    "description", ["", "Peak memory.", "How long it took.", "Newest value.", "Size of the file."]
)
def test_words_that_are_no_unit_do_not_pass_for_one(description: str) -> None:
    assert not UNIT.search(description)
