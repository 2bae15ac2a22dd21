"""Sampling job: generates text from a checkpoint, streamed over a Unix socket."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trainer.contract import events, sockets
from trainer.contract.jobs import TOKEN_SOCKET
from trainer.contract.orders import JobOrder
from trainer.runtime.process import Process


def run(order: JobOrder, own: Process) -> dict[str, Any]:
    """params: jobs.SampleParams with `checkpoint` resolved. Result: see SampleParams."""
    own.reporter.emit(events.Stage(stage="loading", detail="model"))
    from trainer.evaluate import samples
    from trainer.jobs.load_model import load

    loaded = load(order)
    own.reporter.emit(events.Stage(stage="sampling"))
    params, step, results = order.params, loaded.manifest.step, []
    with _stream(own.directory / TOKEN_SOCKET) as send:
        for index, prompt in enumerate(params["prompts"]):
            started = time.monotonic()
            sample = samples.generate(
                loaded.model,
                loaded.tokenizer,
                prompt,
                max_tokens=params["max_tokens"],
                temperature=params["temperature"],
                top_k=params["top_k"],
                seed=params["seed"] + index,
                on_token=lambda text, index=index: send({"prompt": index, "text": text}),
                should_stop=own.control.wants_attention,
            )
            if sample is None:
                break
            seconds = time.monotonic() - started
            own.reporter.emit(
                events.SampleResult(
                    step=step,
                    prompt=prompt,
                    text=sample.text,
                    temperature=params["temperature"],
                    top_k=params["top_k"],
                    seed=params["seed"] + index,
                    seconds=seconds,
                )
            )
            results.append({"prompt": prompt, "text": sample.text, "seconds": seconds})
    return {"samples": results, "step": step, "checkpoint": loaded.path.name}


@contextlib.contextmanager
def _stream(path: Path) -> Iterator[Any]:
    """send(message) to everyone connected, one JSON line each; a slow listener is dropped.

    Nothing durable depends on it: the complete text is reported at the end.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listeners: list[socket.socket] = []
    try:
        with sockets.address(path) as address:
            listener.bind(address)
        listener.listen(8)
        listener.setblocking(False)
    except OSError as error:
        print(f"no token stream: {error}")
    history: list[bytes] = []

    def welcome() -> None:
        """A client that connects late receives the text so far."""
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                connection.settimeout(0.5)
                connection.sendall(b"".join(history))
                listeners.append(connection)

    def send(message: dict[str, Any]) -> None:
        welcome()
        line = json.dumps(message).encode() + b"\n"
        history.append(line)
        for connection in list(listeners):
            try:
                connection.sendall(line)
            except OSError:
                listeners.remove(connection)
                connection.close()

    try:
        yield send
    finally:
        welcome()
        for connection in [*listeners, listener]:
            connection.close()
        with contextlib.suppress(OSError):
            path.unlink()
