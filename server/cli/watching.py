"""`traind watch`: follow a run live; full screen on a terminal, lines in a pipe."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import typer

from server.cli import options, output, waiting
from trainer.contract.text import clean

if TYPE_CHECKING:
    from server.cli.view import View
    from server.client import Client

REDRAWS_PER_SECOND = 4
LINE_SECONDS = 2.0  # interval of progress lines in a pipe
QUIET_SECONDS = 2.0  # request progress if the stream has none for this long
HISTORY_POINTS = 1000
PAST_EVENTS = 50


def register(app: typer.Typer) -> None:
    app.command(rich_help_panel="Look")(watch)


def watch(run: options.RunArgument, json: options.Json = False) -> None:
    """Watch a run until it settles. Exit status: 0 completed, 1 failed, 4 paused or not started, 5
    cancelled, 130 Ctrl-C. --json prints one line per message."""
    with output.connect() as traind:
        raise typer.Exit(follow(traind, run, json=json))


def follow(traind: Client, run: str, *, json: bool = False) -> int:
    """Show `run` until it settles; returns the exit status for its final state."""
    from server.cli.view import View

    view = View(traind.progress(run))
    past = traind.events(view.progress.id, limit=PAST_EVENTS, newest=True).data
    view.events.extend(past)
    after = past[-1].id if past else 0
    draw = _json() if json else _screen(view) if output.is_terminal() else _lines(view)
    try:
        with _listening(traind, view.progress.id, after) as messages, draw as show:
            view.take_history(
                traind.metrics(view.progress.id, keys=["loss"], max_points=HISTORY_POINTS)
            )
            for kind, data in _messages(traind, view, messages):
                show(kind, data)
    except KeyboardInterrupt:
        output.note(f"the run continues; watch it again with: traind watch {clean(run)}")
        return output.INTERRUPTED
    progress = view.progress
    if not json:
        output.note(f"{progress.name} is {progress.state}: {progress.reason_message}", "")
        if progress.advice:
            output.note(progress.advice)
    return waiting.outcome(progress.state)


def _messages(
    traind: Client, view: View, messages: queue.SimpleQueue[tuple[str, Any]]
) -> Iterator[tuple[str, Any]]:
    """Yield each message after `view` has taken it in; ends when the run has settled."""
    from server.client import NotReachable
    from server.schemas.events import EventView
    from server.schemas.progress import Progress

    fresh = time.monotonic()
    yield "progress", view.progress
    while view.progress.state not in waiting.SETTLED_STATES:
        kind, data = _next(messages)
        if kind == "error":
            raise data
        if kind == "connection":
            view.connected = data
        elif kind == "event":
            data = EventView.model_validate(data)
            view.events.append(data)
            # a settled run sends no more progress: check when its state may have changed
            fresh = 0.0 if data.kind == "state" else fresh
        elif kind == "progress":
            data = Progress.model_validate(data)
            view.take(data)
            fresh = time.monotonic()
        yield kind, data
        if time.monotonic() - fresh > QUIET_SECONDS and messages.empty():
            fresh = time.monotonic()
            with suppress(NotReachable):
                view.take(traind.progress(view.progress.id))
                yield "progress", view.progress


def _next(messages: queue.SimpleQueue[tuple[str, Any]]) -> tuple[str, Any]:
    try:
        return messages.get(timeout=0.5)
    except queue.Empty:
        return "tick", None


@contextmanager
def _listening(
    traind: Client, run_id: str, after: int
) -> Iterator[queue.SimpleQueue[tuple[str, Any]]]:
    """A queue of the stream's messages, filled by a thread with its own connection."""
    from server.client import Client, ClientError

    messages: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
    reader, stopped = Client(traind.url), threading.Event()

    def read() -> None:
        try:
            stream = reader.stream(
                run_id, after=after, on_connection=lambda up: messages.put(("connection", up))
            )
            for message in stream:
                if stopped.is_set():
                    return
                if message.id is not None:
                    messages.put(("event", message.data))
                elif message.event == "progress":
                    messages.put(("progress", message.data))
        except ClientError as error:
            messages.put(("error", error))
        except RuntimeError:  # our own close() interrupted a read
            if not stopped.is_set():
                raise

    threading.Thread(target=read, name="traind-stream", daemon=True).start()
    try:
        yield messages
    finally:
        stopped.set()
        with suppress(Exception):
            reader.close()


@contextmanager
def _screen(view: View) -> Iterator[Any]:
    from rich.live import Live

    from server.cli.view import screen

    console = output.stdout()

    def picture() -> Any:
        return screen(view, console.width, console.height)

    with Live(
        get_renderable=picture,
        console=console,
        screen=True,
        refresh_per_second=REDRAWS_PER_SECOND,
        vertical_overflow="crop",
    ):
        yield lambda kind, data: None  # rich redraws it


@contextmanager
def _lines(view: View) -> Iterator[Any]:
    from server.cli.listing import event_line
    from server.cli.view import line

    console = output.stdout()
    last: list[Any] = [0.0, None]

    def show(kind: str, data: Any) -> None:
        if kind == "event":
            console.print(event_line(data), soft_wrap=True)
        elif kind == "progress":
            text, now = line(data), time.monotonic()
            due = now - last[0] >= LINE_SECONDS or data.state in waiting.SETTLED_STATES
            if due and text != last[1]:
                last[:] = [now, text]
                console.print(text, soft_wrap=True)
        elif kind == "connection" and not data:
            output.note("the daemon does not answer; waiting for it")

    yield show


@contextmanager
def _json() -> Iterator[Any]:
    def show(kind: str, data: Any) -> None:
        if kind in ("event", "progress"):
            output.emit_line({"type": kind, **data.model_dump(mode="json")})

    yield show
