"""Connections that say nothing, slowly, or are too many: closed, and nobody else is hurt."""

from __future__ import annotations

import resource
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import httpx
import pytest

from server.guard import connections
from server.guard.connections import Connection
from tests.server.asgi import Asgi
from tests.server.live_server import Serving, serving, until


@pytest.fixture
def served(asgi: Asgi, monkeypatch: pytest.MonkeyPatch) -> Iterator[Serving]:
    monkeypatch.setattr(connections, "REQUEST_SECONDS", 0.4)
    with serving(asgi, http=Connection) as made:
        yield made


def is_closed(sock: socket.socket, seconds: float = 5.0) -> bool:
    """Whether the other side closes the connection in time, whatever it says before."""
    sock.settimeout(seconds)
    try:
        while sock.recv(65_536):
            pass
    except ConnectionError:
        return True
    except TimeoutError:
        return False
    return True


@pytest.mark.parametrize(
    "said",
    [b"", b"G", b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: ",
     b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"],
    ids=["nothing", "a letter", "half of the headers", "a whole request, then nothing"],
)  # fmt: skip
def test_f56_a_connection_that_waits_is_closed(served: Serving, said: bytes) -> None:
    with socket.create_connection(("127.0.0.1", served.port)) as sock:
        sock.sendall(said)
        assert is_closed(sock)


def test_f56_a_byte_now_and_then_does_not_keep_it_open(served: Serving) -> None:
    with socket.create_connection(("127.0.0.1", served.port)) as sock:
        began = time.monotonic()
        sock.sendall(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nX: ")
        with suppress(ConnectionError):
            while time.monotonic() - began < 5:
                sock.sendall(b"x")
                time.sleep(0.05)
        assert time.monotonic() - began < 4


def test_a_slow_answer_is_waited_for(served: Serving) -> None:
    """The time is that of the request; a stream that lives longer is not cut off."""
    with (
        httpx.Client(base_url=f"http://127.0.0.1:{served.port}", timeout=5) as client,
        client.stream("GET", "/v1/events", headers={"accept": "text/event-stream"}) as stream,
    ):
        time.sleep(3 * connections.REQUEST_SECONDS)
        served.asgi.create(start=False)
        assert any("state" in line or "created" in line for line in stream.iter_lines())


def test_f56_two_thousand_idle_sockets_shut_nobody_out(asgi: Asgi) -> None:
    connections.raise_file_limit()
    if resource.getrlimit(resource.RLIMIT_NOFILE)[0] < 5000:
        pytest.skip("this system does not allow 5,000 open files")
    with serving(asgi, http=Connection) as made, ExitStack() as held:
        idle = [
            held.enter_context(socket.create_connection(("127.0.0.1", made.port), timeout=10))
            for _ in range(2000)
        ]
        most = connections.most_connections()
        until(lambda: len(made.server.server_state.connections) <= most)
        answer = httpx.get(f"http://127.0.0.1:{made.port}/healthz", timeout=10)
        assert answer.status_code == 200
        until(lambda: len(made.server.server_state.connections) <= most)
        closed = [is_closed(sock, 0.001) for sock in idle]
        assert sum(closed[:1000]) >= 2000 - most - 10  # the longest idle, not those that came last


# --- clients that do not read --------------------------------------------------------------------

PIPELINED = b"GET /openapi.json HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"


def unread(served: Serving, requests: int = 400) -> socket.socket:
    """A client that sends many requests in one go and reads no answer."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.connect(("127.0.0.1", served.port))
    sock.setblocking(False)
    with suppress(BlockingIOError):
        sock.send(PIPELINED * requests)
    sock.setblocking(True)
    return sock


def open_connections(served: Serving) -> int:
    return len(served.server.server_state.connections)


def test_a_client_that_never_reads_is_cut(served: Serving, monkeypatch) -> None:
    monkeypatch.setattr(connections, "WRITE_SECONDS", 0.5)
    with unread(served):
        until(lambda: open_connections(served) == 1)
        until(lambda: open_connections(served) == 0, seconds=10)


def test_a_client_that_reads_slowly_gets_all_of_it(served: Serving, monkeypatch) -> None:
    monkeypatch.setattr(connections, "WRITE_SECONDS", 2.0)
    with unread(served, 6) as sock:
        sock.sendall(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
        got = b""
        while chunk := sock.recv(262_144):
            got += chunk
            time.sleep(0.001)
    assert got.count(b"HTTP/1.1 200") == 7


def test_newcomers_are_served_while_others_read_nothing(asgi: Asgi, monkeypatch) -> None:
    """Until the deadline of those that do not read, a newcomer takes the place of one of them."""
    monkeypatch.setattr(connections, "MAX_CONNECTIONS", 10)
    with serving(asgi, http=Connection) as served, ExitStack() as stack:
        for _ in range(15):
            stack.enter_context(unread(served))
        for _ in range(10):
            answer = httpx.get(f"http://127.0.0.1:{served.port}/healthz", timeout=10)
            assert answer.status_code == 200
        assert open_connections(served) <= 10


def test_an_answer_that_nobody_reads_does_not_keep_a_closing_connection(served: Serving) -> None:
    """The last answer lies in the buffer: a close would wait for it to be read."""
    with unread(served, 8) as sock:
        with suppress(OSError):
            sock.send(b"GET /openapi.json HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        until(lambda: open_connections(served) == 0, seconds=20)
