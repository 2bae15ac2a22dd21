"""Every number of the API, specs and settings states what it is: a quantity in a unit, a count, a
ratio or a position. What is none of these is listed with the reason.

A unit is stated by "in seconds" or by beginning with it ("Seconds between two passes"); a word such
as "steps" somewhere in a description states nothing.
"""

from __future__ import annotations

import re
from typing import Any

import pytest

from server.settings import Settings
from tests.server.asgi import Asgi

UNITS = (
    "unix seconds", "seconds", "minutes", "hours", "days", "bytes per second", "bytes", "watts",
    "kilowatt-hours", "joules", "degrees Celsius", "nats per token", "nats", "bits per byte",
    "tokens per second", "tokens per parameter", "tokens per scaling parameter",
    "FLOP/s", "FLOPs", "floating-point operations", "percent", "characters", "channels", "tokens",
    "optimizer steps", "your currency", "their currency", "the tariff's currency",
)  # fmt: skip
# The same unit under two names.
SYNONYMS = {"floating-point operations": "FLOPs", "FLOP/s": "FLOPs", "optimizer steps": "steps"}
COUNTED = (
    "tokens", "steps", "rows", "layers", "heads", "channels", "parameters", "passes", "completions",
    "shards", "streams", "threads", "devices", "groups", "checkpoints", "restarts", "decimals",
    "runs", "items", "phases", "seeds", "nodes", "cores", "rewinds", "differences", "prompts",
    "gpus",
)  # fmt: skip
# What may come before the noun at the beginning of a count.
ADJECTIVES = (
    "all", "first N", "forward", "independent", "key/value", "optimizer", "scalar", "training",
    "validation", "CPU", "most likely",
)  # fmt: skip
RATIO = re.compile(r"^(Share|Factor)\b|\bas (a )?(fraction|multiple)s?\b|\bfrom 0 to 1\b")
POSITION = re.compile(
    r"^((First|Last|Highest) )?step\b|^(Place|Position)\b"
    r"|^(Index|Number of the process|Attempt number)\b.* from",
    re.IGNORECASE,
)
# A field whose name ends like this is in that unit.
BY_NAME = {
    "seconds": "seconds", "_at": "unix seconds", "bytes": "bytes", "_watts": "watts",
    "kwh": "kilowatt-hours", "_percent": "percent", "_tokens": "tokens", "_steps": "steps",
    "_joules": "joules", "_celsius": "degrees Celsius", "_days": "days", "minutes": "minutes",
    "_per_kwh": "currency", "_flops": "FLOPs", "_bpb": "bits per byte", "loss": "nats per token",
    "loss_smooth": "nats per token", "_per_second": "per second",
}  # fmt: skip
# Numbers that are none of these, each with the reason.
DIMENSIONLESS = {
    "id": "identifies a row",
    "pid": "identifies a process",
    "port": "identifies a port",
    "status": "HTTP status code",
    "seed": "chooses random numbers",
    "priority": "order alone, within the limits that its description names",
    "temperature": "divides logits",
    "frequency_penalty": "added to logits", "presence_penalty": "added to logits",
    "logit_bias": "added to logits",
    "token_logprobs": "logarithms of probabilities", "top_logprobs": "logarithms of probabilities",
    "top_k": "how many of the likeliest tokens", "top_p": "a probability",
    "best_of": "must equal n",
    "lr": "learning rate", "matrix_lr": "learning rate", "embedding_lr": "learning rate",
    "unembedding_lr": "learning rate", "scalar_lr": "learning rate",
    "value_embedding_lr": "learning rate", "resid_lr": "learning rate", "x0_lr": "learning rate",
    "smear_lr": "learning rate",
    "weight_decay": "coefficient of the update",
    "momentum": "coefficient of an average",
    "beta1": "coefficient of an average", "beta2": "coefficient of an average",
    "grad_norm": "norm of numbers without a unit",
    "mfu": "ratio by its definition", "mfu_causal": "ratio by its definition",
    "core": "accuracy, centred on guessing",
    "value": "in the unit of the evaluation's kind",
    "more": "in the units of GET /v1/catalog",
    "metrics": "in the units of GET /v1/catalog",
    "exit_code": "a code of the operating system",
    "bounds": "in the unit of the field it bounds",
    "mean": "in the unit of the key", "min": "in the unit of the key", "max": "in that unit",
    "points": "each in the unit that the description names",
    "alpha": "exponent", "alpha_interval": "exponent",
    "depths": "number of layers of each member",
    "prompt": "token ids",
}  # fmt: skip


def stated(description: str) -> str | None:
    """The unit that a description states, or what it counts; "ratio" and "position" for those."""
    quantity = re.search(rf"\bin ({_any(UNITS)})(?![\w/])", description) or re.match(
        rf"(?i)(?:(?:{_any(ADJECTIVES)}) )*({_any(UNITS)})(?![\w/])", description
    )
    if quantity:
        unit = next(unit for unit in UNITS if unit.lower() == quantity[1].lower())
        return SYNONYMS.get(unit, unit)
    counted = re.match(
        rf"(?i)(?:\w+ )?number of (?:[\w/']+ )*?(?P<a>{_any(COUNTED)})\b"
        rf"|(?:(?:{_any(ADJECTIVES)}) )*(?P<b>{_any(COUNTED)})\b",
        description,
    )
    if counted:
        return (counted["a"] or counted["b"]).lower()
    if RATIO.search(description):
        return "ratio"
    return "position" if POSITION.search(description) else None


def _any(words: tuple[str, ...]) -> str:
    return "|".join(re.escape(word) for word in words)


@pytest.fixture(scope="module")
def numbers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Schemas of all fields that hold numbers: {"Model.field": schema}."""
    asgi = Asgi(tmp_path_factory.mktemp("units"))
    schemas = asgi.get("/openapi.json").json()["components"]["schemas"]
    asgi.close()
    schemas["Settings"] = Settings.model_json_schema()
    return {
        f"{name}.{field}": found
        for name, schema in schemas.items()
        for field, found in schema.get("properties", {}).items()
        if _types(found) & {"number", "integer"}
    }


def _types(schema: dict[str, Any]) -> set[str]:
    """Types of the values in a field: its own, or those inside lists, maps and alternatives."""
    lists = [schema.get("items"), schema.get("additionalProperties")]
    inner = [*lists, *schema.get("anyOf", []), *schema.get("prefixItems", [])]
    found = [_types(each) for each in inner if isinstance(each, dict)]
    return {schema.get("type", "")}.union(*found)


def test_every_number_states_its_unit_or_has_a_reason_for_none(
    numbers: dict[str, dict[str, Any]],
) -> None:
    assert len(numbers) > 400
    bare = {
        name: found.get("description")
        for name, found in numbers.items()
        if stated(found.get("description", "")) is None
        and name.partition(".")[2] not in DIMENSIONLESS
    }
    assert bare == {}


def test_a_unit_in_a_name_is_the_one_that_is_stated(numbers: dict[str, dict[str, Any]]) -> None:
    other = {}
    for name, found in numbers.items():
        ends = [end for end in BY_NAME if name.endswith(end)]
        said = stated(found.get("description", "")) or ""
        if ends and not said.endswith(BY_NAME[max(ends, key=len)]):
            other[name] = found.get("description")
    assert other == {}


def test_what_is_counted_or_a_position_is_an_integer(numbers: dict[str, dict[str, Any]]) -> None:
    fractional = {
        name: found["description"]
        for name, found in numbers.items()
        if stated(found.get("description", "")) in (*COUNTED, "position")
        and "number" in _types(found)
    }
    assert fractional == {}


def test_what_is_listed_as_dimensionless_exists_and_states_no_unit(
    numbers: dict[str, dict[str, Any]],
) -> None:
    bare = {
        name.partition(".")[2]
        for name, found in numbers.items()
        if stated(found.get("description", "")) is None
    }
    assert sorted(DIMENSIONLESS.keys() - bare) == []


@pytest.mark.parametrize(
    "description",
    ["", "Peak memory.", "How long it took.", "Newest value.", "Size of the file.",
     "Time spent in steps so far.", "Memory that steps hold.", "Duration of a run.",
     "What the ranks of a group wait for.", "Rate of the tokens.", "Energy of its devices."],
)  # fmt: skip
def test_words_that_name_a_thing_are_no_unit(description: str) -> None:
    assert stated(description) is None


@pytest.mark.parametrize(
    ("description", "unit"),
    [("Time spent in steps, in seconds.", "seconds"), ("Start, in unix seconds.", "unix seconds"),
     ("Seconds between two passes.", "seconds"), ("Bytes per second.", "bytes per second"),
     ("Maximum number of new tokens.", "tokens"), ("Optimizer steps done.", "steps"),
     ("Share of a step.", "ratio"), ("Last step reported.", "position"),
     ("Peak, in FLOP/s.", "FLOPs"), ("Tokens per parameter.", "tokens per parameter")],
)  # fmt: skip
def test_the_unit_that_is_stated_is_found(description: str, unit: str) -> None:
    assert stated(description) == unit
