"""Which metrics and labels a PromQL expression speaks of: enough of its grammar to hold it to a
scrape. Prometheus itself judges the syntax.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

_TOKEN = re.compile(
    r"""(?P<string>"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*')
      | (?P<comment>\#[^\n]*)
      | (?P<range>\[[^\]]*\])
      | (?P<number>(?<![\w$])[0-9][0-9.eE]*[a-z]*|\$__\w+)
      | (?P<name>[A-Za-z_:][\w:]*)
      | (?P<operator>=~|!~|!=|==|<=|>=|[-+*/%^=<>(){},@])
      | (?P<space>\s+)""",
    re.VERBOSE,
)
_GROUPING = {"by", "without", "on", "ignoring", "group_left", "group_right"}
_WORDS = {"and", "or", "unless", "offset", "bool", "inf", "nan"}


@dataclass(frozen=True)
class Matcher:
    label: str
    operator: str
    value: str


@dataclass
class Expression:
    """metrics: (name, matchers) of each selector. labels: what grouping and matching names."""

    metrics: list[tuple[str, tuple[Matcher, ...]]] = field(default_factory=list)
    labels: set[str] = field(default_factory=set)


def parse(text: str) -> Expression:
    """Raises ValueError for a character that no PromQL has."""
    tokens, found, at = _tokens(text), Expression(), 0
    while at < len(tokens):
        kind, word = tokens[at]
        following = tokens[at + 1][1] if at + 1 < len(tokens) else ""
        at += 1
        if kind != "name" or word in _WORDS:
            continue
        if word in _GROUPING:
            if following == "(":
                names, at = _until(tokens, at, ")")
                found.labels |= {name for kind, name in names if kind == "name"}
        elif following == "{":
            inside, at = _until(tokens, at, "}")
            found.metrics.append((word, _matchers(inside)))
        elif following != "(" and not (following in _GROUPING and _is_aggregation(tokens, at)):
            found.metrics.append((word, ()))
    return found


def _tokens(text: str) -> list[tuple[str, str]]:
    tokens, at = [], 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None or match.lastgroup is None:
            raise ValueError(f"{text[at]!r} at {at} in {text!r}")
        if match.lastgroup not in ("space", "comment", "range"):
            tokens.append((match.lastgroup, match.group()))
        at = match.end()
    return tokens


def _until(
    tokens: list[tuple[str, str]], at: int, closing: str
) -> tuple[list[tuple[str, str]], int]:
    """The tokens between the bracket at `at` and its closing one, and the place after it."""
    end = next(i for i in range(at, len(tokens)) if tokens[i] == ("operator", closing))
    return tokens[at + 1 : end], end + 1


def _matchers(inside: list[tuple[str, str]]) -> tuple[Matcher, ...]:
    parts = [token for token in inside if token[1] != ","]
    return tuple(
        Matcher(parts[i][1], parts[i + 1][1], parts[i + 2][1][1:-1])
        for i in range(0, len(parts), 3)
    )


def _is_aggregation(tokens: list[tuple[str, str]], at: int) -> bool:
    """Whether the word before `at` aggregates: `sum by (a) (…)`, not `metric on (a) …`."""
    return tokens[at][1] in ("by", "without")
