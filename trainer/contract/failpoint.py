"""Failpoints for fault injection, read once from TRAIND_FAIL; without it each is a no-op.

`TRAIND_FAIL="name=2*off->1*kill;other=error(28)"`: pass twice, then kill once, then off. A term
without a count applies for ever. Actions: off, kill, exit(code), error(errno), delay(seconds),
corrupt (the caller checks `corrupts(name)` and damages what it is about to write). `name@1` applies
to rank 1 of an attempt with several; without a rank a failpoint applies to every process.
"""

from __future__ import annotations

import os
import re
import signal
import time
from functools import cache

_TERM = re.compile(r"^(?:(\d+)\*)?(off|kill|corrupt|exit|error|delay)(?:\(([\d.]+)\))?$")


class _Point:
    def __init__(self, terms: list[tuple[int | None, str, float]]) -> None:
        self.terms = terms

    def next_action(self) -> tuple[str, float]:
        while self.terms:
            count, action, argument = self.terms[0]
            if count is None:
                return action, argument
            if count > 0:
                self.terms[0] = (count - 1, action, argument)
                return action, argument
            self.terms.pop(0)
        return "off", 0.0


@cache
def _points() -> dict[str, _Point]:
    return parse(os.environ.get("TRAIND_FAIL", ""))


def parse(text: str) -> dict[str, _Point]:
    """Parse TRAIND_FAIL into failpoints by name. Raises ValueError on a syntax error."""
    points = {}
    for item in filter(None, (part.strip() for part in text.split(";"))):
        name, _, chain = item.partition("=")
        name, _, rank = name.partition("@")
        terms = []
        for term in chain.split("->"):
            match = _TERM.match(term.strip())
            if not match:
                raise ValueError(f"cannot read failpoint term {term!r} of {name!r}")
            count, action, argument = match.groups()
            terms.append((int(count) if count else None, action, float(argument or 0)))
        if rank in ("", os.environ.get("RANK", "0")):
            points[name] = _Point(terms)
    return points


def hit(name: str) -> None:
    """Pass the failpoint `name`: returns, sleeps, raises OSError, or ends the process."""
    if "TRAIND_FAIL" in os.environ:
        _act(name)


def corrupts(name: str) -> bool:
    """True if the caller should corrupt what it writes at failpoint `name`."""
    if "TRAIND_FAIL" not in os.environ:
        return False
    point = _points().get(name)
    return point is not None and point.next_action()[0] == "corrupt"


def _act(name: str) -> None:
    point = _points().get(name)
    if point is None:
        return
    action, argument = point.next_action()
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)
    elif action == "exit":
        os._exit(int(argument))
    elif action == "error":
        raise OSError(int(argument), os.strerror(int(argument)), f"failpoint {name}")
    elif action == "delay":
        time.sleep(argument)
