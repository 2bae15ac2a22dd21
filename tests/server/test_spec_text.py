"""A spec in YAML or JSON means one thing or is refused with its field, as at the API's door."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from server.cli import spec_text
from server.cli.output import CommandRefused
from server.cli.specfile import read_spec
from server.errors import Invalid
from server.guard import bodies

REFUSED = {
    "a key twice": (
        "horizon: {steps: 10}\nname: a\nhorizon: {steps: 20}\n",
        "'horizon' appears twice",
    ),
    "a key twice below": ("horizon:\n  steps: 10\n  steps: 20\n", "line 3 column 3.*'steps'"),
    "a key twice in JSON": ('{"horizon": {"steps": 10, "steps": 20}}', "'steps' appears twice"),
    "infinity": ("horizon:\n  flops: .inf\n", r"horizon\.flops: \.inf is not a number"),
    "minus infinity": ("optimizer: {matrix_lr: -.inf}", r"optimizer\.matrix_lr: -\.inf"),
    "not a number": ("optimizer: {matrix_lr: .nan}", r"optimizer\.matrix_lr: nan"),
    "half a character": ('title: "\\ud800"', r"title: text holds half a surrogate pair"),
    "infinity in JSON": ('{"horizon": {"flops": Infinity}}', r"horizon\.flops: \.inf"),
    "a number too large": ("horizon: {flops: 1e999}", r"horizon\.flops: \.inf"),
    "a number as key": ("metadata: {1: x}", "the key '1' is not text"),
    "a date as key in a list": ("notify: [{2026-01-01: x, 2026-01-01: y}]", "appears twice"),
    "an alias": ("a: &x {b: 1}\nc: *x\n", r"line 2 column 4: aliases"),
    "laughs": (
        "a: &a [x,x]\n"
        + "".join(f"{b}: &{b} [*{a},*{a}]\n" for a, b in zip("abcdefg", "bcdefgh", strict=True)),
        "aliases",
    ),
    "a merge": ("a: &a {b: 1}\nc: {<<: *a}\n", "aliases"),
    "bytes": ("title: !!binary aGk=", "title: a bytes"),
    "a set": ("prompts: !!set {a, b}", "prompts: a set"),
    "an object": ("x: !!python/object/apply:os.system [id]", "could not determine a constructor"),
    "two documents": ("a: 1\n---\nb: 2\n", "but found another document"),
    "nested": ("[" * 100_000, "nested too deeply"),
    "nested JSON": ("[" * 100_000 + "]" * 100_000, "nested too deeply"),
    "too long": ("a: " + "x" * spec_text.MAX_CHARS, "longer than"),
    "a number of many digits": ("horizon: {steps: " + "9" * 5000 + "}", "digits"),
    "neither": ("a: [1, 2", "did not find expected|expected ',' or"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_means_two_things_or_nothing_is_refused(case: str, tmp_path: Path) -> None:
    text, words = REFUSED[case]
    file = tmp_path / "spec.yaml"
    file.write_text(text)
    with pytest.raises(CommandRefused, match=words) as caught:
        read_spec(str(file), [])
    assert caught.value.code == 2
    assert str(file) in caught.value.message


@pytest.mark.parametrize("case", ["a key twice in JSON", "infinity in JSON"])
def test_the_api_refuses_the_same(case: str) -> None:
    with pytest.raises(Invalid):
        bodies.parse(REFUSED[case][0].encode())


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("2026-11-28", "2026-11-28"),
        ("2026-11-28 10:00:00", "2026-11-28 10:00:00"),
        ("010", "010"),
        ("0x10", "0x10"),
        ("1:30", "1:30"),
        ("no", "no"),
        ("on", "on"),
        ("true", True),
        ("1_000_000", 1_000_000),
        ("-3", -3),
        ("+7", 7),
        ("1e18", 1e18),
        ("1e-3", 1e-3),
        ("1.5", 1.5),
        (".5", 0.5),
        ("5.", 5.0),
        ("~", None),
        ("", None),
        ("0", 0),
        (".", "."),
        ("1.2.3", "1.2.3"),
        ("e5", "e5"),
    ],
)
def test_plain_words_of_yaml_mean_what_json_says(written: str, value: object) -> None:
    found = spec_text.read(f"a: {written}\n")["a"]
    assert found == value
    assert type(found) is type(value)


def test_json_with_tabs_is_json() -> None:
    body = {"name": "x", "evaluate": {"prompts": ["a\tb", "ü \u2028"]}, "horizon": {"steps": 5}}
    assert spec_text.read(json.dumps(body, indent="\t")) == body


def test_a_setting_given_twice_is_refused() -> None:
    with pytest.raises(CommandRefused, match=r"--set horizon\.steps: given twice"):
        read_spec(None, ["horizon.steps=10", "horizon.steps=20"])
    with pytest.raises(CommandRefused, match=r"--set horizon\.flops: .*\.inf is not a number"):
        read_spec(None, ["horizon.flops=.inf"])
    assert read_spec(None, ["title=a: b: c"])["title"] == "a: b: c"


def test_a_device_without_end_is_no_spec() -> None:
    with pytest.raises(CommandRefused, match=r"cannot be read|is not valid YAML or JSON"):
        read_spec("/dev/zero", [])


def test_a_home_that_is_not_there_is_the_daemons_to_refuse(tmp_path: Path) -> None:
    file = tmp_path / "spec.yaml"
    file.write_text("data: {source: text, path: ~nosuchuser/x}\n")
    assert read_spec(str(file), [])["data"]["path"].endswith("~nosuchuser/x")
    with pytest.raises(CommandRefused, match="cannot be read"):
        read_spec("~nosuchuser/spec.yaml", [])
