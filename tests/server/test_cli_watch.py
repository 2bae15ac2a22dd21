"""watch: driven by the stream, over lost connections, to an exit status that tells the outcome."""

from __future__ import annotations

import json
from typing import Any

import pytest

from server.client import stream as client_stream
from tests.server.stub_daemon import Reply, Stub, detail, event_frame, page, progress
from tests.server.test_cli_commands import Traind, stub, traind

__all__ = ["stub", "traind"]  # fixtures

PATH = "/v1/runs/run_1"
NO_METRICS = Reply({"series": [], "bin_steps": 1, "raw_points": 0, "segments": []})


def frame(answer: dict[str, Any]) -> bytes:
    return f"event: progress\ndata: {json.dumps(answer)}\n\n".encode()


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_stream, "FIRST_WAIT_SECONDS", 0.01)


def scripted(stub: Stub, *streams: list[bytes], last: str = "completed") -> None:
    """A running run with one past event; when the stream falls silent it is in state `last`."""
    stub.on("GET", "/v1/runs/demo/progress", Reply(progress()))
    stub.on("GET", f"{PATH}/progress", Reply(progress(last, step=200)))
    stub.on("GET", f"{PATH}/metrics", NO_METRICS)
    replies = [Reply(stream=parts) for parts in streams]
    past = page(json.loads(event_frame(4, "before").splitlines()[2].removeprefix(b"data: ")))

    def events(asked: Any) -> Reply:
        if asked.headers["accept"] != "text/event-stream":
            return past
        return replies.pop(0) if len(replies) > 1 else replies[0]

    stub.on("GET", f"{PATH}/events", events)


@pytest.mark.parametrize(
    ("state", "code"), [("completed", 0), ("failed", 1), ("paused", 4), ("cancelled", 5)]
)
def test_the_exit_status_tells_how_it_ended(stub: Stub, traind: Traind, state: str, code: int):
    scripted(stub, [event_frame(5, "a step"), frame(progress(state, step=200, advice="Do that."))])
    ran = traind("watch", "demo")
    assert ran.code == code
    assert "a step" in ran.out
    assert f"demo is {state}" in ran.err
    assert "Do that." in ran.err


def test_a_run_that_waits_for_its_start_is_not_watched_for_ever(stub: Stub, traind: Traind):
    scripted(stub, [b": x\n\n"])
    stub.on("GET", "/v1/runs/demo/progress", Reply(progress("created", step=0)))
    assert traind("watch", "demo").code == 4


def test_a_restart_of_the_daemon_leaves_no_gap(stub: Stub, traind: Traind):
    scripted(
        stub,
        [event_frame(5, "first"), frame(progress(step=60)), b"event: bye\ndata: {}\n\n"],
        [event_frame(5, "first"), event_frame(6, "second"), frame(progress("completed", 200))],
    )
    ran = traind("watch", "demo")
    assert ran.code == 0
    assert ran.out.count("first") == 1
    assert ran.out.index("first") < ran.out.index("second")
    streams = [a for a in stub.asked if a.headers["accept"] == "text/event-stream"]
    assert [a.headers["last-event-id"] for a in streams[:2]] == ["4", "5"]


def test_a_silent_stream_does_not_hide_the_end(stub: Stub, traind: Traind):
    """The state event comes, the progress frame does not: the answer is asked for."""
    scripted(stub, [event_frame(5, "running -> completed", "state")])
    assert traind("watch", "demo").code == 0


def test_json_is_one_document_a_line(stub: Stub, traind: Traind):
    scripted(stub, [event_frame(5, "x\x1b"), frame(progress("completed", 200))])
    ran = traind("watch", "demo", "--json")
    found = [json.loads(line) for line in ran.out.splitlines()]
    assert [f["type"] for f in found] == ["progress", "event", "progress"]
    assert found[-1]["state"] == "completed"
    assert "\x1b" not in ran.out


def test_a_deleted_run_ends_the_watch(stub: Stub, traind: Traind):
    scripted(stub, [frame(progress())])
    gone = Reply({"type": "urn:traind:error:not-found", "detail": "no such run"}, 404)
    stub.on("GET", f"{PATH}/progress", gone)
    stub.on("GET", f"{PATH}/events", lambda a: gone if "event" in a.headers["accept"] else page())
    assert traind("watch", "demo").code == 1


def test_run_with_watch_ends_as_the_run_does(stub: Stub, traind: Traind):
    scripted(stub, [frame(progress("failed", 60))])
    stub.on("POST", "/v1/runs", Reply(detail("demo", "queued"), 201))
    assert traind("run", "--name", "demo", "--watch").code == 1
