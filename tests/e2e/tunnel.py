"""What `ssh -L` does: a port of its own, and every byte passed on to another port of loopback."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress


@contextmanager
def tunnel(to_port: int) -> Iterator[int]:
    """The local port; everything is closed at the end."""
    opened: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            with suppress(OSError):  # the listener is closed: the tunnel ends
                while True:
                    here, _ = listener.accept()
                    there = socket.create_connection(("127.0.0.1", to_port))
                    opened.extend((here, there))
                    for pair in ((here, there), (there, here)):
                        threading.Thread(target=_pass_on, args=pair, daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
    for one in opened:
        one.close()


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while part := source.recv(1 << 16):
            target.sendall(part)
        target.shutdown(socket.SHUT_WR)
