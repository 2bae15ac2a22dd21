"""Output of the CLI: results to stdout, messages to stderr, errors, tables, JSON.

All text from the daemon passes through `text.clean`; no string is parsed as rich markup.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, NoReturn

from trainer.contract.text import clean, clean_lines, to_json

if TYPE_CHECKING:
    from pydantic import BaseModel
    from rich.console import Console
    from rich.text import Text

    from server.client import Client
    from server.schemas.runs import Condition

PIPE_COLUMNS = 160
OK, FAILED, USAGE, UNREACHABLE, INTERRUPTED = 0, 1, 2, 3, 130
# Exit statuses of `watch` and `run --watch` for a run that neither completed nor failed.
WAITING, CANCELLED = 4, 5

_OUTPUT_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EPIPE)

STATE_STYLES = {
    "running": "green", "completed": "bold green", "failed": "bold red", "paused": "yellow",
    "pausing": "yellow", "recovering": "magenta", "cancelled": "dim", "cancelling": "dim",
    "starting": "cyan", "preparing": "cyan", "queued": "blue", "created": "dim",
}  # fmt: skip

CONDITION_WORDS = {"disk_full": "waiting for disk", "silent": "silent"}

url: ContextVar[str | None] = ContextVar("url", default=None)


class CommandRefused(Exception):
    """Refusal by the CLI itself; `code` is the exit status."""

    def __init__(self, message: str, hint: str | None = None, code: int = FAILED) -> None:
        self.message, self.hint, self.code = message, hint, code
        super().__init__(message)


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, or another signal that ends the command.

    A separate class, because CPython remembers a bare KeyboardInterrupt that passed through an
    `exec` of text (for example while a dataclass is created) and finally kills itself by SIGINT,
    whatever the requested exit status.
    """


def interrupt(number: int, frame: object) -> NoReturn:
    """Signal handler that stops the command. Raises Interrupted."""
    raise Interrupted


def connect() -> Client:
    """A client of the daemon at --url or TRAIND_URL."""
    from server.client import Client

    return Client(url.get(), door="cli")


def stdout() -> Console:
    return _console(stderr=False)


def stderr() -> Console:
    return _console(stderr=True)


def is_terminal() -> bool:
    return sys.stdout.isatty()


def emit(value: BaseModel | Sequence[BaseModel] | Any) -> None:
    """Print `value` as JSON on stdout: the API's own document."""
    sys.stdout.write(to_json(_plain(value)) + "\n")


def emit_line(value: BaseModel | Any) -> None:
    """Print one JSON document on one line, for streams."""
    import json

    sys.stdout.write(json.dumps(_plain(value), ensure_ascii=True) + "\n")
    sys.stdout.flush()


def deleted(name: str, json: bool) -> None:
    """Report a deletion, for which the API returns no document."""
    if json:
        return emit({"deleted": name})
    return note(f"deleted {name}")


def say(message: str = "", style: str = "") -> None:
    """Print a line of the result to stdout."""
    stdout().print(styled(clean_lines(message), style), soft_wrap=True)


def note(message: str, style: str = "dim") -> None:
    """Print a note to stderr, where it does not disturb pipes; a full disk behind it is ignored."""
    with suppress(OSError):
        stderr().print(styled(clean_lines(message), style), soft_wrap=True)


def warn(messages: Iterable[str]) -> None:
    for message in messages:
        note(f"! {message}", "yellow")


def styled(value: str, style: str = "") -> Text:
    """`value` in `style`, which text appended to it does not inherit."""
    from rich.text import Text

    return Text().append(value, style=style)


def state(name: str, condition: Condition | None = None) -> Text:
    """The state in its colour; of a run that stands still, what it waits for."""
    if condition is not None:
        return styled(CONDITION_WORDS[condition.code], "yellow")
    return styled(clean(name), STATE_STYLES.get(name, ""))


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], empty: str) -> None:
    """Print rows under headings; a heading that begins with '>' aligns its column to the right."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold")
    for column in columns:
        right = column.startswith(">")
        drawn.add_column(
            column.removeprefix(">"),
            justify="right" if right else "left",
            no_wrap=right,
            overflow="fold",
        )
    for row in rows:
        drawn.add_row(*(cell if isinstance(cell, Text) else clean(cell) for cell in row))
    if drawn.row_count:
        stdout().print(drawn)
    else:
        note(empty)


def pairs(title: str, rows: Iterable[tuple[str, object]]) -> None:
    """Print a titled block of 'name  value' lines."""
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in rows:
        grid.add_row(clean(name), value if isinstance(value, Text) else clean_lines(value))
    stdout().print(styled(clean(title), "bold"))
    stdout().print(grid)


def explain(error: Exception) -> int | None:
    """Print an error to stderr. Returns the exit status, or None for an unexpected error."""
    if isinstance(error, CommandRefused):
        _complain(error.message, error.hint)
        return error.code
    if isinstance(error, OSError) and error.filename is None and error.errno in _OUTPUT_ERRORS:
        if error.errno != errno.EPIPE:  # `| head` has closed the pipe, which needs no message
            _complain(f"the output cannot be written: {error.strerror}", None)
        return FAILED
    if isinstance(error, RuntimeError) and "home directory" in str(error):  # pathlib's message
        _complain(
            f"{str(error).rstrip('.')}",
            "set HOME, or name the directory with --data-dir or TRAIND_DATA_DIR",
        )
        return FAILED
    if isinstance(error, UnicodeEncodeError) and error.encoding == "utf-8":
        text = ascii(error.object)
        _complain(f"text that is not UTF-8 cannot be sent to the daemon: {text[:200]}", None)
        return USAGE
    from server.client.wire import ApiError, ClientError, NotProven, NotReachable

    if isinstance(error, NotReachable):
        _complain(str(error), "start it with: traind serve   (or: traind service install)")
        return UNREACHABLE
    if isinstance(error, ApiError):
        lines = [error.detail]
        lines += [f"  {e.get('pointer') or '/'}: {e.get('detail', '')}" for e in error.errors]
        legal = f"possible now: {', '.join(error.legal)}" if error.legal else None
        _complain("\n".join(lines), error.hint or legal)
        return FAILED
    if isinstance(error, NotProven):
        _complain(str(error), "name the daemon with --url and its token with TRAIND_TOKEN_FILE")
        return FAILED
    if isinstance(error, ClientError):
        _complain(str(error), None)
        return FAILED
    return None


def usage(message: str, hint: str | None = None) -> NoReturn:
    raise CommandRefused(message, hint, USAGE)


def _complain(message: str, hint: str | None) -> None:
    note(f"traind: {message}", "red")
    if hint:
        note(f"hint: {hint}", "")


def _plain(value: Any) -> Any:
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value


def _console(*, stderr: bool) -> Console:
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    # a pipe has no width: do not fold what a script reads
    width = None if stream.isatty() or "COLUMNS" in os.environ else PIPE_COLUMNS
    return Console(file=stream, width=width, markup=False, highlight=False, emoji=False)
