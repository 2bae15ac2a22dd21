"""Event rows have one writer, `server.domain.events.record`."""

from __future__ import annotations

import ast
from pathlib import Path

SERVER = Path(__file__).parents[2] / "server"


def writers() -> set[str]:
    """Modules of the server that make an event row."""
    return {
        str(path.relative_to(SERVER))
        for path in SERVER.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("tables.Event", "Event")
    } - {"database/tables.py"}


def test_event_rows_have_one_writer() -> None:
    assert writers() == {"domain/events.py"}
