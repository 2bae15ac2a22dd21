"""The app behind a real uvicorn on a loopback port, in a thread of the test."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from server.api.app import end_streams
from tests.server.asgi import Asgi


class Serving:
    """port; stop() ends it as the daemon does: streams first."""

    def __init__(self, asgi: Asgi, **config: Any) -> None:
        self.asgi = asgi
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listener.getsockname()[1]
        made = uvicorn.Config(asgi.app, log_level="critical", lifespan="off", **config)
        self.server = uvicorn.Server(made)
        self.thread = threading.Thread(target=self.server.run, args=([self.listener],))

    def stop(self) -> None:
        end_streams(self.asgi.app)
        self.server.should_exit = True
        self.thread.join(timeout=60)  # what clients have asked for already is answered first
        assert not self.thread.is_alive()


@contextmanager
def serving(asgi: Asgi, **config: Any) -> Iterator[Serving]:
    """config: of uvicorn, beyond what a test needs anyway."""
    made = Serving(asgi, **config)
    made.thread.start()
    try:
        until(lambda: made.server.started)
        yield made
    finally:
        made.stop()
        made.listener.close()


def until(condition: Callable[[], object], seconds: float = 10.0) -> None:
    """Wait for a condition with a deadline."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def open_stream(port: int, path: str, **headers: str) -> socket.socket:
    """A client that has asked for a stream and reads nothing yet."""
    sock = socket.create_connection(("127.0.0.1", port), timeout=10)
    lines = [f"GET {path} HTTP/1.1", f"Host: 127.0.0.1:{port}", "Accept: text/event-stream"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    sock.sendall("\r\n".join([*lines, "", ""]).encode())
    return sock


def read_until(sock: socket.socket, wanted: bytes, seconds: float = 10.0) -> bytes:
    """Everything up to and with `wanted`."""
    got, deadline = bytearray(), time.monotonic() + seconds
    while wanted not in got[-70_000 - len(wanted) :]:
        sock.settimeout(max(0.01, deadline - time.monotonic()))
        part = sock.recv(65_536)
        assert part, f"the stream ended before {wanted!r}: {got[-500:]!r}"
        got += part
    return bytes(got)
