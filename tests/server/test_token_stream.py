"""A sampling job's text as it is written, over real sockets on both sides."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from server.api import token_stream
from server.database import tables
from tests.server import rows
from tests.server.asgi import Asgi
from tests.server.live_server import open_stream, read_until, serving, until
from trainer.contract import sockets
from trainer.contract.jobs import TOKEN_SOCKET

PATH = "/v1/jobs/job_1/stream"


def add_job(asgi: Asgi, state: str = "running", kind: str = "sample") -> Path:
    """A job's row, and its directory."""
    with asgi.db.write() as session:
        session.add(
            rows.job(
                id="job_1", kind=kind, where="cpu", state=state, params={}, message="",
                token="t", created_at=time.time(),
            )
        )  # fmt: skip
    directory = asgi.settings.paths.job("job_1")
    directory.mkdir(parents=True)
    return directory


def end_job(asgi: Asgi, state: str) -> None:
    with asgi.db.write() as session:
        rows.put(session.get_one(tables.Job, "job_1"), state)


@contextmanager
def writing(directory: Path) -> Iterator[socket.socket]:
    """The job's side of its socket."""
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as listener:
        listener.settimeout(10)
        with sockets.address(directory / TOKEN_SOCKET) as address:
            listener.bind(address)
        listener.listen(8)
        yield listener


def line(text: str) -> bytes:
    return json.dumps({"prompt": 0, "text": text}).encode() + b"\n"


def test_text_arrives_while_it_is_written_and_the_end_is_said(asgi: Asgi) -> None:
    """The client is there before the job writes; what is no line of ours is left out."""
    directory = add_job(asgi, "queued")
    with serving(asgi) as served, closing(open_stream(served.port, PATH)) as sock:
        read_until(sock, b": traind")
        with writing(directory) as listener, closing(listener.accept()[0]) as job:
            job.sendall(line("one\r\nevent: forged"))
            said = read_until(sock, b"\n\n")
            assert b'data: {"prompt": 0, "text": "one\\r\\nevent: forged"}\n' in said
            job.sendall(b"{}\n[1]\nnot json\n" + line("two"))
            said = read_until(sock, b'"two"}')
            assert said.count(b"event:") == 1
            job.sendall(line("three"))
        end_job(asgi, "completed")
        said = read_until(sock, b'event: end\ndata: {"state": "completed"}')
        assert b'"three"' in said
    assert asgi.app.state.token_streams == set()


def test_without_a_socket_the_end_is_said_all_the_same(asgi: Asgi) -> None:
    add_job(asgi)
    with serving(asgi) as served, closing(open_stream(served.port, PATH)) as sock:
        read_until(sock, b": traind")
        end_job(asgi, "failed")
        read_until(sock, b'{"state": "failed"}')


def test_a_client_that_leaves_and_a_daemon_that_stops_end_it(asgi: Asgi) -> None:
    add_job(asgi)
    with serving(asgi) as served:
        with closing(open_stream(served.port, PATH)) as sock:
            read_until(sock, b": traind")
            assert len(asgi.app.state.token_streams) == 1
        until(lambda: not asgi.app.state.token_streams)
        with closing(open_stream(served.port, PATH)) as sock:
            read_until(sock, b": traind")
            served.stop()
            read_until(sock, b"the daemon is stopping")


@pytest.mark.parametrize(
    ("state", "kind", "why"),
    [("running", "export", "generates no text"), ("completed", "sample", "has ended")],
)
def test_what_has_no_stream_is_409(asgi: Asgi, state: str, kind: str, why: str) -> None:
    add_job(asgi, state, kind)
    answer = asgi.get(PATH)
    assert answer.status_code == 409
    assert why in answer.json()["detail"]
    assert answer.json()["state"] == state


def test_streams_are_counted_and_bounded(asgi: Asgi, monkeypatch: pytest.MonkeyPatch) -> None:
    add_job(asgi)
    monkeypatch.setattr("server.api.jobs.MAX_TOKEN_STREAMS", 1)
    assert token_stream.MAX_TOKEN_STREAMS >= 1
    with serving(asgi) as served, closing(open_stream(served.port, PATH)) as sock:
        read_until(sock, b": traind")
        answer = asgi.get(PATH)
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")


def test_a_web_page_elsewhere_hears_nothing(asgi: Asgi) -> None:
    add_job(asgi)
    assert asgi.get(PATH, headers={"Host": "evil.example"}).status_code == 403
