"""Runs a command to its exit status: errors become messages, Ctrl-C a status."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress

from server.cli import output


def run(command: Callable[[], object]) -> None:
    """Run one command and exit with its status."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not if SIGINT is ignored
        signal.signal(signal.SIGINT, output.interrupt)
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, ValueError):
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    try:
        try:
            command()
        finally:
            sys.stdout.flush()  # flushed here, where a full disk can still be reported
    except Exception as error:
        status = output.explain(error)
        if status is None:
            raise
        _drop_output()
        sys.exit(status)


def _drop_output() -> None:
    """Discard unwritten stdout, so that the interpreter does not retry at exit."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
