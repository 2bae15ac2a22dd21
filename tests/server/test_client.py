"""The client at its edges: refusals, lost answers, tokens, and a stream that outlives a daemon."""

from __future__ import annotations

import itertools
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server import token_proof
from server.client import ApiError, BadAnswer, Client, ClientError, NotProven, NotReachable
from server.client import stream as client_stream
from tests.server.asgi import Asgi
from tests.server.live_server import serving
from tests.server.stub_daemon import (
    Asked,
    Reply,
    Stub,
    detail,
    event_frame,
    page,
    problem,
    progress,
    running,
    summary,
)


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("TRAIND_URL", "TRAIND_PORT", "TRAIND_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TRAIND_DATA_DIR", str(tmp_path / "data"))


@pytest.fixture
def stub() -> Iterator[Stub]:
    with running() as stub:
        yield stub


def test_answers_are_typed_and_pages_are_followed(stub: Stub):
    stub.on(
        "GET", "/v1/runs",
        Reply({"data": [summary("a")], "has_more": True, "next": "cursor"}),
        page(summary("b")),
    )  # fmt: skip
    with Client(stub.url) as traind:
        assert [run.name for run in traind.runs()] == ["a", "b"]
    assert stub.asked[1].query["after"] == ["cursor"]


def test_a_refusal_carries_the_document(stub: Stub):
    answer = problem(
        409, "illegal-move", "run demo is completed", state="completed", legal=["queued"],
        hint="extend it", errors=[{"pointer": "/x", "detail": "no"}],
    )  # fmt: skip
    stub.on("POST", "/v1/runs/demo/pause", answer)
    with Client(stub.url) as traind, pytest.raises(ApiError) as caught:
        traind.pause("demo")
    error = caught.value
    assert (error.status, error.code, error.state) == (409, "illegal-move", "completed")
    assert (error.hint, error.legal) == ("extend it", ["queued"])
    assert error.errors == [{"pointer": "/x", "detail": "no"}]


def test_nobody_there_is_not_reachable_at_once():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        began = time.monotonic()
        with Client(url) as traind, pytest.raises(NotReachable, match="no daemon answers"):
            traind.system()
        assert time.monotonic() - began < 2


@pytest.mark.parametrize("url", ["http://[", "ftp://127.0.0.1", "nonsense", "http://127.0.0.1:0"])
def test_a_url_that_cannot_be_meant_is_not_reachable(url: str):
    with pytest.raises(ClientError), Client(url) as traind:
        traind.system()


def test_a_lost_answer_is_asked_for_again_under_the_same_key(stub: Stub):
    stub.on("POST", "/v1/runs", Reply(drop=True), Reply(detail(), 201))
    with Client(stub.url) as traind:
        assert traind.create_run({"name": "demo"}).name == "demo"
    keys = [asked.headers["idempotency-key"] for asked in stub.asked]
    assert len(keys) == 2
    assert keys[0] == keys[1]


def test_two_requests_have_two_keys(stub: Stub):
    stub.on("POST", "/v1/runs/demo/pause", Reply(detail(), 202))
    with Client(stub.url) as traind:
        traind.pause("demo")
        traind.pause("demo")
        traind.pause("demo", key="mine")
    keys = [asked.headers["idempotency-key"] for asked in stub.asked]
    assert len(set(keys)) == 3
    assert keys[2] == "mine"


def test_a_question_sends_no_key(stub: Stub):
    stub.on("POST", "/v1/plan", Reply({"plan": None}))
    with Client(stub.url) as traind:
        traind.plan({"name": "x"})
    assert "idempotency-key" not in stub.asked[0].headers


def test_answers_lost_for_good_end_as_not_reachable(stub: Stub):
    stub.on("GET", "/v1/system", Reply(drop=True))
    with Client(stub.url) as traind, pytest.raises(NotReachable):
        traind.system()
    assert len(stub.asked) == 3


def test_busy_is_tried_again_after_what_it_says(stub: Stub):
    busy = problem(503, "busy", "locked")
    busy.headers["Retry-After"] = "0.1"
    stub.on("GET", "/v1/runs/demo/progress", busy, Reply(progress()))
    with Client(stub.url) as traind:
        assert traind.progress("demo").step == 50


def test_busy_for_ever_is_said(stub: Stub):
    busy = problem(503, "busy", "locked")
    busy.headers["Retry-After"] = "0"
    stub.on("GET", "/v1/runs/demo/progress", busy)
    with Client(stub.url) as traind, pytest.raises(ApiError) as caught:
        traind.progress("demo")
    assert caught.value.code == "busy"


@pytest.mark.parametrize(
    "reply",
    [
        Reply("<html>hello</html>", headers={"Content-Type": "text/html"}),
        Reply({"unexpected": 1}),
        Reply([]),
        Reply("", 302, {"Location": "http://elsewhere/"}),
    ],
)
def test_something_else_on_that_port_is_named_as_such(stub: Stub, reply: Reply):
    stub.on("GET", "/v1/system", reply)
    with Client(stub.url) as traind, pytest.raises(BadAnswer, match="daemon"):
        traind.system()


def test_a_redirect_is_never_followed_with_the_token(stub: Stub, tmp_path: Path):
    token = _token(tmp_path / "token")
    _knows_the_token(stub)
    stub.on("GET", "/v1/system", Reply("", 307, {"Location": f"{stub.url}/v1/elsewhere"}))
    with Client(stub.url, token_file=token) as traind, pytest.raises(BadAnswer):
        traind.system()
    assert not stub.requests("GET", "/v1/elsewhere")


@pytest.mark.parametrize("name", ["../system", "a/b", "a?b=c", "ä#", "..", "."])
def test_a_name_stays_one_segment_of_the_path(stub: Stub, name: str):
    with Client(stub.url) as traind, pytest.raises(ApiError):
        traind.run(name)
    assert stub.asked[0].path.startswith("/v1/runs/")
    assert stub.asked[0].path.count("/") == 3
    assert stub.asked[0].path not in ("/v1/runs/..", "/v1/runs/.")
    assert stub.asked[0].query == {}


# --- tokens --------------------------------------------------------------------------------------


TOKEN = "secret-token-0123456789"


def test_the_token_is_proved_from_the_named_file(stub: Stub, tmp_path: Path, monkeypatch: Any):
    monkeypatch.setenv("TRAIND_TOKEN_FILE", str(_token(tmp_path / "token")))
    _knows_the_token(stub)
    assert token_proof.is_bearer(TOKEN, _bearer_sent(stub))


def test_on_loopback_the_data_directory_token_is_proved(stub: Stub, tmp_path: Path):
    (tmp_path / "data").mkdir()
    _token(tmp_path / "data" / "token")
    _knows_the_token(stub)
    assert token_proof.is_bearer(TOKEN, _bearer_sent(stub))
    assert TOKEN not in str(stub.asked)


IMPOSTORS = [
    Reply({"status": "ok"}),
    Reply({"status": "ok"}, headers={"Traind-Proof": "1-" + "0" * 32 + "." + "0" * 64}),
    Reply({"status": "ok"}, headers={"Traind-Proof": ""}),
    Reply(headers={"Traind-Proof": str(token_proof.of_daemon("another-token", "c" * 43))}),
    Reply("<html>hello</html>", headers={"Content-Type": "text/html"}),
    Reply("", 302, {"Location": "http://127.0.0.1:1/"}),
    Reply("", 404),
]  # fmt: skip


@pytest.mark.parametrize("healthz", IMPOSTORS)
@pytest.mark.parametrize("status", [200, 401])
def test_another_program_on_the_port_is_shown_nothing(
    stub: Stub, tmp_path: Path, healthz: Reply, status: int
):
    """Neither the token nor a proof of it, whatever the program answers."""
    stub.on("GET", "/healthz", healthz)
    stub.on("GET", "/v1/runs", page() if status == 200 else Reply({"detail": "token?"}, 401))
    with Client(stub.url, token_file=_token(tmp_path / "token")) as traind:
        for _ in range(2):
            if status == 200:
                traind.list_runs()
                continue
            with pytest.raises(NotProven, match="the token was not sent"):
                traind.list_runs()
    assert TOKEN not in str(stub.asked)
    assert not any("authorization" in asked.headers for asked in stub.asked)


def test_a_proof_that_was_overheard_proves_nothing_again(stub: Stub, tmp_path: Path):
    """A recorded answer of the real daemon belongs to another challenge."""
    recorded = token_proof.of_daemon(TOKEN, token_proof.challenge())
    stub.on("GET", "/healthz", Reply({"status": "ok"}, headers={"Traind-Proof": str(recorded)}))
    stub.on("GET", "/v1/runs", page())
    with Client(stub.url, token_file=_token(tmp_path / "token")) as traind:
        traind.list_runs()
        assert not traind.wire.proving.is_proven  # type: ignore[union-attr]


def test_a_bearer_that_the_daemon_refuses_is_made_anew(stub: Stub, tmp_path: Path):
    _knows_the_token(stub)
    stub.on("GET", "/v1/runs", page(), Reply({"detail": "expired"}, 401), page())
    with Client(stub.url, token_file=_token(tmp_path / "token")) as traind:
        traind.list_runs()
        traind.list_runs()
    sent = [a.headers.get("authorization") for a in stub.requests("GET", "/v1/runs")]
    assert len(sent) == 3
    assert sent[0] == sent[1] != sent[2]
    assert len(stub.requests("GET", "/healthz")) == 2


def test_after_a_lost_connection_the_other_side_proves_itself_anew(stub: Stub, tmp_path: Path):
    """The daemon ended, and another program took its port."""
    _knows_the_token(stub)
    stub.on("GET", "/v1/runs", page(), Reply(drop=True), page())
    with Client(stub.url, token_file=_token(tmp_path / "token")) as traind:
        traind.list_runs()
        stub.on("GET", "/healthz", Reply({"status": "ok"}))
        traind.list_runs()
    sent = ["authorization" in a.headers for a in stub.requests("GET", "/v1/runs")]
    assert sent == [True, True, False]


def test_a_bearer_lasts_ten_minutes_and_belongs_to_its_token(monkeypatch: pytest.MonkeyPatch):
    asked = token_proof.challenge()
    made = token_proof.bearer(TOKEN, asked, str(token_proof.of_daemon(TOKEN, asked)))
    assert made is not None
    assert token_proof.is_bearer(TOKEN, made.encode())
    assert not token_proof.is_bearer("another-token-000", made.encode())
    for broken in (made[:-1], made.replace("traind1", "traind2"), made + ".", "traind1...", "é"):
        assert not token_proof.is_bearer(TOKEN, broken.encode("latin-1"))
    now = time.time()
    for later, holds in ((550, True), (650, False), (-200, True), (-400, False)):
        monkeypatch.setattr(token_proof.time, "time", lambda later=later: now + later)
        assert token_proof.is_bearer(TOKEN, made.encode()) is holds


def test_the_daemon_and_the_client_prove_themselves(tmp_path: Path):
    """The real app behind a real server: the token is on no line of the conversation."""
    asgi = Asgi(tmp_path / "http", auth="always")
    seen: list[bytes] = []
    real = asgi.app.state.policy.tokens.is_token
    asgi.app.state.policy.tokens.is_token = lambda given: seen.append(given) or real(given)
    try:
        with serving(asgi) as served:
            url = f"http://127.0.0.1:{served.port}"
            token = asgi.settings.paths.root / "token"
            with Client(url, token_file=token) as traind:
                assert traind.system().auth == "token"
                assert traind.create_run({"name": "demo", "start": False}).name == "demo"
            with pytest.raises(NotProven), Client(url, token_file=_token(tmp_path / "x")) as other:
                other.system()
            answer = httpx.get(f"{url}/healthz", headers={"Traind-Challenge": "short"})
            assert "traind-proof" not in answer.headers
        assert seen
        assert not any(token.read_bytes().strip() in given for given in seen)
    finally:
        asgi.close()


def test_another_machine_is_not_shown_this_ones_token(tmp_path: Path):
    (tmp_path / "data").mkdir()
    _token(tmp_path / "data" / "token")
    with Client("http://192.0.2.1:8321") as traind:
        assert traind.wire.proving is None
        assert "authorization" not in traind.wire.http.headers


def test_without_a_token_nothing_is_sent(stub: Stub):
    assert _header_sent(stub) is None


def test_a_named_token_file_must_be_readable(tmp_path: Path):
    with pytest.raises(ClientError, match="cannot be read"):
        Client(token_file=tmp_path / "missing")


def test_the_url_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch):
    assert Client().url == "http://127.0.0.1:8321"
    monkeypatch.setenv("TRAIND_PORT", "9000")
    assert Client().url == "http://127.0.0.1:9000"
    monkeypatch.setenv("TRAIND_URL", "http://localhost:7777/")
    assert Client().url == "http://localhost:7777"


def test_a_proxy_in_the_environment_is_not_used_on_loopback(
    stub: Stub, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    assert _header_sent(stub) is None
    assert stub.asked


# --- the stream ----------------------------------------------------------------------------------


def test_a_lost_stream_goes_on_after_the_last_event(stub: Stub, quick: None):
    parts = [
        [event_frame(1, "a"), event_frame(2, "b"), b'id: 3\ndata: {"torn"'],
        [event_frame(2, "b"), event_frame(3, "c")],  # a daemon that repeats is heard once
        [b": heartbeat\n\n", event_frame(4, "d")],
    ]
    stub.on("GET", "/v1/runs/demo/events", *(Reply(stream=part) for part in parts))
    assert _ids(Client(stub.url).stream("demo"), 4) == [1, 2, 3, 4]
    asked = [a.headers.get("last-event-id") for a in stub.requests("GET", "/v1/runs/demo/events")]
    assert asked[:3] == [None, "2", "3"]
    assert stub.asked[0].headers["accept"] == "text/event-stream"


def test_a_restarted_daemon_is_taken_up_where_it_was(quick: None):
    """The stub keeps its events over the restart, as a daemon keeps its rows."""
    changes: list[bool] = []
    found: list[int | None] = []

    def from_rows(asked) -> Reply:
        after = int(asked.headers.get("last-event-id", 0))
        return Reply(stream=[event_frame(n, "x") for n in range(after + 1, after + 4)])

    first = Stub()
    first.on("GET", "/v1/events", from_rows)
    client = Client(first.url)
    reader = threading.Thread(
        target=lambda: found.extend(_ids(client.stream(on_connection=changes.append), 12))
    )
    with running_pair(first) as restart:
        reader.start()
        _until(lambda: len(first.asked) >= 1)
        restart()
        reader.join(20)
    client.close()
    assert found == list(range(1, 13))
    assert True in changes
    assert False in changes


def test_a_stream_begins_after_what_was_seen(stub: Stub, quick: None):
    stub.on("GET", "/v1/events", Reply(stream=[event_frame(7, "x"), event_frame(9, "y")]))
    assert _ids(Client(stub.url).stream(after=7), 1) == [9]
    assert stub.asked[0].headers["last-event-id"] == "7"


def test_a_refused_stream_is_not_tried_again(stub: Stub, quick: None):
    with pytest.raises(ApiError) as caught:
        next(Client(stub.url).stream("nobody"))
    assert caught.value.status == 404
    assert len(stub.asked) == 1


def test_a_starting_daemon_is_waited_for(stub: Stub, quick: None):
    answers = [problem(503, "busy", "starting"), Reply(stream=[event_frame(1, "x")])]
    stub.on("GET", "/v1/events", *answers)
    assert _ids(Client(stub.url).stream(), 1) == [1]


def test_giving_up_is_possible(quick: None):
    with pytest.raises(NotReachable):
        next(Client("http://127.0.0.1:1").stream(give_up_seconds=0.05))


EVENT = 'id: 5\nevent: state\ndata: {"a":\ndata: "b\u2028c\u0085d"}\n\n'


def test_a_message_is_parsed_as_the_standard_says():
    text = ": comment\nretry: 2000\n\n" + EVENT + "event: bye\nid: x\ndata:none\n\ndata: cut off"
    messages = list(client_stream.parse(client_stream.lines([text])))
    assert messages == [
        client_stream.Message("state", {"a": "b\u2028c\u0085d"}, 5),
        client_stream.Message("bye", "none", None),
    ]


@given(
    st.lists(st.integers(0, len(EVENT) * 2), max_size=8),
    st.sampled_from(["\n", "\r\n", "\r"]),
)
def test_how_the_bytes_arrive_does_not_matter(cuts: list[int], ending: str):
    text = (EVENT + EVENT).replace("\n", ending) + ":"  # a last CR may be half of a CRLF
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    chunks = [text[a:b] for a, b in itertools.pairwise(edges)]
    found = list(client_stream.parse(client_stream.lines(chunks)))
    assert found == [client_stream.Message("state", {"a": "b\u2028c\u0085d"}, 5)] * 2


# --- helpers -------------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses between connections that a test can afford."""
    monkeypatch.setattr(client_stream, "FIRST_WAIT_SECONDS", 0.01)


class running_pair:
    """A stub, and a second one on the same port when the first has been closed."""

    def __init__(self, first: Stub) -> None:
        self.first, self.second = first, None

    def __enter__(self):
        return self._restart

    def _restart(self) -> Stub:
        self.first.close()
        self.second = Stub(self.first.port, self.first.answers)
        return self.second

    def __exit__(self, *_: object) -> None:
        if self.second is None:
            self.first.close()
        else:
            self.second.close()


def _ids(stream: Iterator[client_stream.Message], count: int) -> list[int | None]:
    return [next(stream).id for _ in range(count)]


def _token(path: Path) -> Path:
    path.write_text("secret-token-0123456789\n")
    path.chmod(0o600)
    return path


def _knows_the_token(stub: Stub) -> None:
    def prove(asked: Asked) -> Reply:
        answer = token_proof.of_daemon("secret-token-0123456789", asked.headers["traind-challenge"])
        return Reply({"status": "ok"}, headers={"Traind-Proof": str(answer)})

    stub.on("GET", "/healthz", prove)


def _bearer_sent(stub: Stub) -> bytes:
    kind, _, bearer = str(_header_sent(stub)).partition(" ")
    assert kind == "Bearer"
    return bearer.encode()


def _header_sent(stub: Stub) -> str | None:
    stub.on("GET", "/v1/runs", page())
    with Client(stub.url) as traind:
        assert list(traind.runs()) == []
    return stub.asked[-1].headers.get("authorization")


def _until(condition, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_stub_speaks_json():
    """The frames above are what the daemon sends: one line of JSON."""
    frame = event_frame(1, "x\ny").decode().splitlines()
    assert json.loads(frame[2].removeprefix("data: "))["message"] == "x\ny"
