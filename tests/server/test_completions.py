"""Completions over HTTP, with a serving job played by the test on the job's real socket."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from typing import Any

import httpx
import pytest

from server.api import completion_stream as api
from server.database import tables
from server.domain import jobs
from server.queries import run_views
from server.supervision import job_params, stall_timeout
from tests.server import rows as server_rows
from tests.server.asgi import Asgi
from tests.server.live_server import Serving, read_until, serving, until
from trainer.contract import sockets
from trainer.contract.completions import SERVE_SOCKET
from trainer.contract.jobs import ServeParams

PATH = "/v1/completions"
ASK = {"model": "demo", "prompt": "def "}
DONE = {"kind": "done", "prompt_tokens": 2, "completion_tokens": 3}


def piece(text: str, index: int = 0, **more: Any) -> dict[str, Any]:
    return {"kind": "piece", "index": index, "text": text, **more}


def save(asgi: Asgi, step: int, attempt: int = 1, run: str = "demo", **more: Any) -> str:
    """A checkpoint's row."""
    name = f"step-{step:09d}-a{attempt:04d}"
    with asgi.db.write() as session:
        row = tables.Checkpoint(
            run_id=run_views.get_run(session, run).id, name=name, step=step, bytes=1, why="cadence",
            manifest_sha256="0" * 64, created_at=1000.0 + step, **more,
        )  # fmt: skip
        session.add(row)
    return name


class House:
    """The app behind a real server, with a run of three checkpoints."""

    def __init__(self, asgi: Asgi, served: Serving) -> None:
        self.asgi, self.served, self.db, self.paths = asgi, served, asgi.db, asgi.settings.paths
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{served.port}", timeout=30)

    def get(self, path: str) -> httpx.Response:
        return self.client.get(path)

    def post(self, body: dict[str, Any], **given: Any) -> httpx.Response:
        return self.client.post(PATH, json=body, **given)


@pytest.fixture
def house(asgi: Asgi) -> Iterator[House]:
    asgi.create()
    save(asgi, 100, val_bpb=1.5)
    save(asgi, 200, val_bpb=1.2)
    save(asgi, 300, val_bpb=1.3)
    with serving(asgi) as served:
        made = House(asgi, served)
        yield made
        made.client.close()


class Job:
    """The serving job: says `words` to whoever asks, and keeps the orders.

    hold: seconds that it waits for the other side to hang up, with nothing more to say.
    """

    def __init__(self, house: House, words: list[dict[str, Any]], *, hold: float = 0.0) -> None:
        with house.db.write() as session:
            self.id = jobs.serve(session, time.time()).id
        directory = house.paths.job(self.id)
        directory.mkdir(parents=True, exist_ok=True)
        self.house, self.words, self.hold = house, words, hold
        self.orders: list[dict[str, Any]] = []
        self.hung_up, self.is_free = threading.Event(), threading.Event()
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with sockets.address(directory / SERVE_SOCKET) as address:
            self.listener.bind(address)
        self.listener.listen(8)
        self.thread = threading.Thread(target=self.serve)
        self.thread.start()

    def serve(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            with suppress(OSError), closing(connection), connection.makefile("rb") as lines:
                self.orders.append(json.loads(lines.readline()))
                for word in self.words:
                    connection.sendall(json.dumps(word).encode() + b"\n")
                if self.hold:
                    connection.settimeout(self.hold)
                    if not connection.recv(1):
                        self.hung_up.set()
            self.is_free.set()

    def end(self, state: str = "completed", message: str = "") -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.thread.join(timeout=20)
        with self.house.db.write() as session:
            row = session.get_one(tables.Job, self.id)
            server_rows.put(row, state)
            row.message = message


@contextmanager
def job_saying(house: House, *words: dict[str, Any], hold: float = 0.0) -> Iterator[Job]:
    job = Job(house, list(words), hold=hold)
    try:
        yield job
    finally:
        job.end()


def rows(house: House) -> list[tables.Job]:
    with house.db.read() as session:
        return list(session.query(tables.Job))


# --- models --------------------------------------------------------------------------------------


def test_models_are_the_checkpoints_that_count_the_newest_first(house: House) -> None:
    save(house.asgi, 400, superseded=True)
    save(house.asgi, 500, deleted_at=1.0)
    save(house.asgi, 600, bad="torn")
    save(house.asgi, 300, attempt=2)
    listed = house.get("/v1/models").json()
    assert listed["object"] == "list"
    assert [model["id"] for model in listed["data"]] == ["demo@300", "demo@200", "demo@100"]
    assert listed["data"][0] == {
        "id": "demo@300", "object": "model", "created": 1300, "owned_by": "traind",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("demo", "demo@300"),
        ("demo@100", "demo@100"),
        ("demo@best", "demo@200"),
        ("demo@step-000000200-a0001", "demo@200"),
    ],
)
def test_a_model_has_these_names(house: House, name: str, model: str) -> None:
    assert house.get(f"/v1/models/{name}").json()["id"] == model
    with house.db.read() as session:
        run = run_views.get_run(session, "demo").id
    assert house.get(f"/v1/models/{name.replace('demo', run)}").json()["id"] == model


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("other", "There is no run 'other'."),
        ("demo@400", "no usable checkpoint at step 400"),
        ("demo@step-000000400-a0001", "no usable checkpoint step-000000400-a0001"),
        ("empty", "Run empty has no usable checkpoint."),
        ("empty@best", "No checkpoint of run empty has a val bpb."),
    ],
)
def test_a_model_that_is_not_there_is_404_for_both(house: House, name: str, why: str) -> None:
    house.asgi.create("empty")
    for answer in (house.get(f"/v1/models/{name}"), house.post(ASK | {"model": name})):
        assert answer.status_code == 404
        said = answer.json()
        assert why in said["detail"]
        assert said["error"]["code"] == "model_not_found"
        assert why in said["error"]["message"]
    assert rows(house) == []


def test_what_was_set_aside_can_still_be_asked_by_its_step(house: House) -> None:
    name = save(house.asgi, 400, superseded=True)
    assert house.get("/v1/models/demo@400").json()["id"] == "demo@400"
    with job_saying(house, DONE):
        assert house.post(ASK | {"model": "demo@400"}).json()["system_fingerprint"] == name


# --- answers -------------------------------------------------------------------------------------


def test_pieces_become_one_answer(house: House) -> None:
    said = {"tokens": ["a"], "token_logprobs": [-1.0], "top_logprobs": [{}], "text_offset": [0]}
    words = [
        piece("a", logprobs=said),
        piece("b", logprobs={**said, "text_offset": [1]}, finish_reason="length"),
        piece("", 1, finish_reason="stop"),
    ]
    with job_saying(house, *words, DONE) as job:
        answer = house.post(ASK | {"n": 2, "logprobs": 0})
    assert answer.status_code == 200, answer.text
    made = answer.json()
    assert made["object"] == "text_completion"
    assert (made["model"], made["system_fingerprint"]) == ("demo@300", "step-000000300-a0001")
    assert made["usage"] == {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5}
    first, second = made["choices"]
    assert (first["text"], first["finish_reason"]) == ("ab", "length")
    assert first["logprobs"] == {
        "tokens": ["a", "a"], "token_logprobs": [-1.0, -1.0],
        "top_logprobs": [{}, {}], "text_offset": [0, 1],
    }  # fmt: skip
    assert second == {"index": 1, "text": "", "logprobs": None, "finish_reason": "stop"}
    assert job.orders[0]["prompts"] == ["def "]
    assert job.orders[0]["run_dir"].startswith(str(house.paths.root))


def test_what_is_not_said_has_openais_defaults_and_null_says_nothing(house: House) -> None:
    nothing = dict.fromkeys(
        ["max_tokens", "temperature", "top_p", "n", "stop", "seed", "suffix", "user", "logit_bias",
         "echo", "logprobs", "stream", "best_of", "presence_penalty", "stream_options"]
    )  # fmt: skip
    with job_saying(house, DONE) as job:
        house.post(ASK)
        house.post(ASK | nothing)
        house.post(ASK | {"seed": -7, "top_p": 0, "stop": "\n", "user": "me", "suffix": ""})
    first, second, third = job.orders
    assert (first["max_tokens"], first["temperature"], first["top_p"]) == (16, 1.0, 1.0)
    assert first["seed"] != second["seed"]
    assert {**first, "seed": 0} == {**second, "seed": 0}
    assert (third["seed"], third["stop"]) == (-7, ["\n"])
    assert 0 < third["top_p"] < 1e-6


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("a", ["a"]),
        ("", [""]),
        (["a", "b"], ["a", "b"]),
        ([1, 2], [[1, 2]]),
        ([[1], [2, 3]], [[1], [2, 3]]),
    ],
)
def test_a_prompt_has_four_forms(house: House, prompt: Any, prompts: Any) -> None:
    with job_saying(house, DONE) as job:
        assert house.post(ASK | {"prompt": prompt}).status_code == 200
    assert job.orders[0]["prompts"] == prompts


@pytest.mark.parametrize(
    ("more", "pointer"),
    [
        ({"prompt": []}, "/prompt"),
        ({"prompt": [[]]}, "/prompt/0"),
        ({"prompt": [-1]}, "/prompt/0"),
        ({"max_token": 3}, "/max_token"),
        ({"temperature": -1}, "/temperature"),
        ({"stop": ["a"] * 17}, "/stop"),
        ({"stop": ""}, "/stop"),
        ({"suffix": "end"}, "/suffix"),
        ({"logit_bias": {"x": 1}}, "/logit_bias/x"),
        ({"logit_bias": {"5": "7"}}, "/logit_bias/5"),
        ({"prompt": [True, 1]}, "/prompt/0"),
        ({"stream": 1.0}, "/stream"),
        ({"n": 100, "prompt": ["a", "b"]}, "/n"),
        ({"n": 2, "best_of": 3}, "/best_of"),
    ],
)
def test_what_cannot_be_meant_is_422_for_both(
    house: House, more: dict[str, Any], pointer: str
) -> None:
    answer = house.post(ASK | more)
    assert answer.status_code == 422, answer.text
    said = answer.json()
    assert any(error["pointer"].startswith(pointer) for error in said["errors"])
    assert said["error"]["type"] == "invalid_request_error"
    assert said["error"]["param"].startswith(pointer[1:].split("/")[0])
    assert rows(house) == []


# --- streams -------------------------------------------------------------------------------------


def open_completion(house: House, key: str = "", **more: Any) -> socket.socket:
    """A client that has asked and reads nothing yet."""
    raw, port = json.dumps(ASK | more), house.served.port
    sock = socket.create_connection(("127.0.0.1", port), timeout=10)
    head = [f"POST {PATH} HTTP/1.1", f"Host: 127.0.0.1:{port}"]
    head += [f"Idempotency-Key: {key}"] if key else []
    head += ["Content-Type: application/json", f"Content-Length: {len(raw)}", "", raw]
    sock.sendall("\r\n".join(head).encode())
    return sock


def test_a_stream_has_a_part_for_each_piece_and_ends_with_done(house: House) -> None:
    options = {"stream": True, "stream_options": {"include_usage": True}}
    with job_saying(house, piece("a\n"), piece("b", finish_reason="stop"), DONE):
        answer = house.post(ASK | options)
    assert answer.headers["content-type"].startswith("text/event-stream")
    *parts, last = [part[6:] for part in answer.text.split("\n\n") if part.startswith("data: ")]
    assert last == "[DONE]"
    told = [json.loads(part) for part in parts]
    assert [t["choices"][0]["text"] for t in told[:-1]] == ["a\n", "b"]
    assert [t["choices"][0]["finish_reason"] for t in told[:-1]] == [None, "stop"]
    assert (told[-1]["choices"], told[-1]["usage"]["total_tokens"]) == ([], 5)
    assert len({t["id"] for t in told}) == 1


def test_a_stream_begins_before_the_first_word_when_that_takes_long(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(api, "HEARTBEAT_SECONDS", 0.1)
    with job_saying(house, hold=10), closing(open_completion(house, stream=True)) as sock:
        read_until(sock, b": heartbeat")


@pytest.mark.parametrize("stream", [False, True])
def test_who_hangs_up_ends_the_work(house: House, stream: bool) -> None:
    with job_saying(house, piece("a"), hold=10) as job:
        with closing(open_completion(house, stream=stream)) as sock:
            if stream:
                read_until(sock, b'"a"')
            until(lambda: len(job.orders) == 1)
        assert job.hung_up.wait(10)
        until(lambda: not house.asgi.app.state.completions)


def test_who_takes_nothing_is_cut_off(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """At once and wholly: an orderly close would wait for it to read what is buffered."""
    monkeypatch.setattr("server.api.sse.STALL_SECONDS", 0.5)
    words = [piece("x" * 100_000) for _ in range(200)]
    with job_saying(house, *words) as job, closing(open_completion(house, stream=True)):
        until(lambda: bool(house.asgi.app.state.completions))
        until(lambda: not house.asgi.app.state.completions)
        until(lambda: not house.served.server.server_state.connections)
        assert job.is_free.wait(2), "it still writes to nobody"


@pytest.mark.parametrize("stream", [False, True])
def test_a_daemon_that_stops_says_so(house: House, stream: bool) -> None:
    with job_saying(house, piece("a"), hold=10) as job:
        with closing(open_completion(house, stream=stream)) as sock:
            until(lambda: len(job.orders) == 1)
            if stream:
                read_until(sock, b'"a"')
            threading.Thread(target=house.served.stop).start()
            said = read_until(sock, b"The daemon is stopping.")
        assert (b" 503 " in said) is not stream


def test_completions_are_bounded(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.api.completions.MAX_OPEN", 1)
    with (
        job_saying(house, piece("a"), hold=10),
        closing(open_completion(house, stream=True)) as sock,
    ):
        read_until(sock, b'"a"')
        answer = house.post(ASK)
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")
    assert answer.json()["error"]["type"] == "server_error"


# --- the job -------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
def test_what_the_job_refuses_is_422_and_what_fails_there_503(house: House, stream: bool) -> None:
    ask = ASK | {"stream": stream}
    with job_saying(house, {"kind": "refused", "message": "no token 9", "param": "prompt"}):
        answer = house.post(ask)
    assert answer.status_code == 422
    assert answer.json()["errors"] == [{"pointer": "/prompt", "detail": "no token 9"}]
    assert answer.json()["error"]["param"] == "prompt"
    with job_saying(house, {"kind": "refused", "message": "Bad: it is damaged"}):
        answer = house.post(ask)
    assert answer.status_code == 503
    assert "it is damaged" in answer.json()["detail"]
    with job_saying(house, {"no": "sense"}):
        assert "invalid reply" in house.post(ask).json()["detail"]


def test_a_job_that_ends_in_the_middle_is_said_in_the_stream(house: House) -> None:
    with job_saying(house, piece("a")):
        answer = house.post(ASK | {"stream": True})
        whole = house.post(ASK)
    last = answer.text.rstrip().rpartition("data: ")[2]
    assert "before the text was complete" in json.loads(last)["error"]["message"]
    assert "[DONE]" not in answer.text
    assert whole.status_code == 503
    assert whole.json()["type"] == "urn:traind:problem:unserved"


def test_a_job_that_never_says_a_word_is_asked_three_times(house: House) -> None:
    with job_saying(house) as job:
        answer = house.post(ASK)
    assert "before its first reply" in answer.json()["detail"]
    assert len(job.orders) == 3


def in_the_background(ask: Callable[[], httpx.Response]) -> Callable[[], httpx.Response]:
    answers: list[httpx.Response] = []
    thread = threading.Thread(target=lambda: answers.append(ask()))
    thread.start()

    def joined() -> httpx.Response:
        thread.join(timeout=20)
        return answers[0]

    return joined


def test_the_first_request_makes_the_job_and_waits_for_it(house: House) -> None:
    answer = in_the_background(lambda: house.post(ASK))
    until(lambda: len(rows(house)) == 1)
    (row,) = rows(house)
    assert (row.kind, row.where, row.state, row.run_id) == ("serve", "cpu", "queued", None)
    with job_saying(house, DONE) as job:
        assert job.id == row.id
        assert answer().status_code == 200


def test_a_job_that_cannot_start_is_said_with_its_reason(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "POLL_SECONDS", 0.05)
    answer = in_the_background(lambda: house.post(ASK))
    until(lambda: len(rows(house)) == 1)
    with house.db.write() as session:
        row = session.query(tables.Job).one()
        server_rows.put(row, "failed")
        row.stage, row.message = "loading", "no torch here\nTraceback: …"
    said = answer()
    assert said.status_code == 503
    assert said.json()["detail"].endswith("could not be started: no torch here")


@pytest.mark.parametrize("state", ["completed", "cancelled", "failed"])
def test_after_one_that_served_and_ended_another_one_is_made(
    house: House, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    """Idle, cancelled or killed in the moment it is asked: a socket is there, and nobody behind."""
    monkeypatch.setattr(api, "POLL_SECONDS", 0.05)
    gone = Job(house, [])
    gone.listener.close()
    answer = in_the_background(lambda: house.post(ASK))
    time.sleep(0.2)
    with house.db.write() as session:
        row = session.get_one(tables.Job, gone.id)
        server_rows.put(row, state)
        row.stage = "serving"
    until(lambda: len(rows(house)) == 2)
    with job_saying(house, DONE) as job:
        assert job.id != gone.id
        assert answer().status_code == 200


def test_a_job_that_does_not_start_in_time_is_said(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(api, "START_SECONDS", 0.1)
    answer = house.post(ASK)
    assert answer.status_code == 503
    assert f"GET /v1/jobs/{rows(house)[0].id}" in answer.json()["hint"]


@pytest.mark.parametrize("stream", [False, True])
def test_the_same_key_gets_the_same_answer_without_being_asked_again(
    house: House, stream: bool
) -> None:
    ask, key = ASK | {"stream": stream}, {"Idempotency-Key": "one"}
    with job_saying(house, piece("a", finish_reason="stop"), DONE) as job:
        first = house.post(ask, headers=key)
        again = house.post(ask, headers=key)
        other = house.post(ask | {"n": 2}, headers=key)
    assert len(job.orders) == 1
    assert again.headers["Idempotent-Replayed"] == "true"
    assert again.headers["content-type"] == first.headers["content-type"]
    assert again.text == first.text.removeprefix(": traind\n\n")
    assert other.status_code == 422
    assert other.json()["error"]["code"] == "idempotency-mismatch"


def test_the_same_key_at_the_same_time_waits_for_the_first(house: House) -> None:
    with (
        job_saying(house, piece("a"), hold=10) as job,
        closing(open_completion(house, "one", stream=True)) as first,
    ):
        read_until(first, b'"a"')
        again = house.post(ASK | {"stream": True}, headers={"Idempotency-Key": "one"})
        assert (again.status_code, again.headers["Retry-After"]) == (503, "1")
        assert "still being answered" in again.json()["error"]["message"]
        other = house.post(ASK | {"n": 2}, headers={"Idempotency-Key": "one"})
        assert (other.status_code, other.json()["error"]["code"]) == (422, "idempotency-mismatch")
        assert len(job.orders) == 1


def test_an_answer_that_was_kept_outlives_its_run(house: House) -> None:
    key = {"Idempotency-Key": "one"}
    with job_saying(house, DONE):
        first = house.post(ASK, headers=key)
    house.asgi.move("demo", "cancelled")
    assert house.client.delete("/v1/runs/demo").status_code in (200, 204)
    again = house.post(ASK, headers=key)
    assert (again.status_code, again.text) == (200, first.text)
    assert house.post(ASK).status_code == 404


def test_a_reply_beyond_all_bounds_is_no_reply(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "MAX_REPLY_BYTES", 1000)
    with job_saying(house, piece("x" * 5000)):
        answer = house.post(ASK)
    assert answer.status_code == 503
    assert "invalid reply" in answer.json()["detail"]


def test_the_socket_lies_in_the_jobs_directory(house: House) -> None:
    with job_saying(house, DONE) as job:
        assert (house.paths.job(job.id) / SERVE_SOCKET).is_socket()


@pytest.mark.parametrize(("stall_seconds", "often"), [(600.0, 60.0), (5.0, 5.0)])
def test_it_says_that_it_lives_before_it_is_taken_for_hung(
    house: House, stall_seconds: float, often: float
) -> None:
    settings = house.asgi.settings.model_copy(update={"stall_seconds": stall_seconds})
    with house.db.write() as session:
        told = job_params.resolve(session, jobs.serve(session, time.time()), settings)
    assert (
        ServeParams.model_validate(told).report_seconds
        == often
        < stall_timeout.OTHER_STAGES * stall_seconds
    )


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses", "/v1/embeddings"])
def test_other_routes_of_openai_say_what_to_use_instead(asgi: Asgi, path: str) -> None:
    answer = asgi.post(path, {"model": "demo", "messages": [{"role": "user", "content": "Hi"}]})
    assert answer.status_code == 404
    assert "POST /v1/completions" in answer.json()["hint"]
    assert "POST /v1/completions" in answer.json()["error"]["message"]
    assert answer.json()["type"] == "urn:traind:problem:not-offered"
