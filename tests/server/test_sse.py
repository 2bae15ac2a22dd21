"""The live stream, over real sockets: no gap, no repeat, no leak."""

from __future__ import annotations

import asyncio
import re
import socket
import time
from contextlib import closing, suppress
from typing import Any

import pytest
from starlette.types import Message

from server.api import sse
from server.database import tables
from server.events.hub import KEPT_EVENTS, BufferedEvent, EventSource, Hub
from server.queries import event_views, run_views
from tests.server.asgi import Asgi
from tests.server.live_server import open_stream, read_until, serving, until


def add_events(asgi: Asgi, count: int, size: int = 10) -> None:
    with asgi.db.write() as session:
        run_id = run_views.get_run(session, "demo").id
        session.add_all(
            tables.Event(run_id=run_id, kind="notice", message="m" * size, unix_seconds=time.time())
            for _ in range(count)
        )


def ids(stream: bytes) -> list[int]:
    return [int(found) for found in re.findall(rb"^id: (\d+)$", stream, re.MULTILINE)]


def drain(sock: socket.socket) -> None:
    """Read to the end of the connection, which must come."""
    sock.settimeout(5)
    with suppress(ConnectionResetError):
        while sock.recv(1 << 20):
            pass


def last_id(asgi: Asgi) -> int:
    with asgi.db.read() as session:
        return event_views.newest_event_id(session)


def test_a_run_s_stream_begins_with_its_first_event_and_goes_on_live(asgi: Asgi) -> None:
    asgi.create()
    with serving(asgi) as served, closing(open_stream(served.port, "/v1/runs/demo/events")) as sock:
        first = read_until(sock, b"id: 2\n")
        assert b"text/event-stream" in first
        assert b"retry: 2000" in first
        add_events(asgi, 1)
        assert ids(read_until(sock, b"event: notice")) == [3]


def test_last_event_id_leaves_no_gap_and_no_repeat(asgi: Asgi) -> None:
    """Cut at any place, also beyond what is kept in memory."""
    asgi.create()
    with serving(asgi) as served:
        keep = open_stream(served.port, "/v1/events")  # so that the hub is at work
        read_until(keep, b": traind")
        seen: list[int] = []
        for count in (3, KEPT_EVENTS + 50, 1, 700):
            add_events(asgi, count)
            end = last_id(asgi)
            start = {"Last_Event_ID": str(seen[-1])} if seen else {}
            with closing(open_stream(served.port, "/v1/events?after=0", **start)) as sock:
                seen += ids(read_until(sock, b"id: %d\n" % end, 20))
        assert seen == list(range(1, last_id(asgi) + 1))
        keep.close()


def test_all_events_without_a_place_to_start_begin_with_what_is_new(asgi: Asgi) -> None:
    asgi.create()
    with serving(asgi) as served, closing(open_stream(served.port, "/v1/events")) as sock:
        read_until(sock, b": traind")
        until(lambda: asgi.app.state.stream.clients)
        add_events(asgi, 1)
        assert ids(read_until(sock, b"event: notice")) == [3]


def test_progress_comes_without_an_id_and_only_when_it_changed(asgi: Asgi) -> None:
    asgi.create()
    with serving(asgi) as served, closing(open_stream(served.port, "/v1/runs/demo/events")) as sock:
        first = read_until(sock, b'"state":"queued"')
        assert b"event: progress" in first
        asgi.move("demo", "running")
        got = read_until(sock, b'"state":"running"')
        assert got.count(b"event: progress") <= 2
        assert ids(got) == []


def test_the_end_is_said(asgi: Asgi) -> None:
    asgi.create()
    with serving(asgi) as served:
        sock = open_stream(served.port, "/v1/runs/demo/events")
        read_until(sock, b"id: 2\n")
        began = time.monotonic()
        served.stop()
        assert b"event: bye" in read_until(sock, b"the daemon is stopping")
        assert time.monotonic() - began < 5
        sock.close()


def test_a_stalled_client_does_not_hold_up_the_end(asgi: Asgi) -> None:
    asgi.create()
    with serving(asgi) as served:
        sock = open_stream(served.port, "/v1/events?after=0")
        until(lambda: asgi.app.state.stream.clients)
        add_events(asgi, 150, size=100_000)
        read_until(sock, b"id: 9\n")
        began = time.monotonic()
        served.stop()
        assert time.monotonic() - began < 5
        sock.close()


def test_a_deleted_run_ends_its_stream(asgi: Asgi) -> None:
    asgi.create(start=False)
    with serving(asgi) as served, closing(open_stream(served.port, "/v1/runs/demo/events")) as sock:
        read_until(sock, b"event: progress")
        asgi.request("DELETE", "/v1/runs/demo")
        assert b"event: bye" in read_until(sock, b"the run was deleted")


def test_f44_a_client_that_is_gone_costs_nothing(asgi: Asgi) -> None:
    asgi.create()
    hub: Hub = asgi.app.state.stream
    with serving(asgi) as served:
        for _ in range(25):  # 1,000 in all
            socks = [open_stream(served.port, "/v1/events") for _ in range(40)]
            until(lambda: sum(hub.clients.values()) == 40)
            for sock in socks:
                sock.close()
            until(lambda: not hub.clients, 5.0)


def test_f45_a_client_that_does_not_read_is_cut_off_and_others_are_unhurt(
    asgi: Asgi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sse, "STALL_SECONDS", 0.5)
    asgi.create()
    hub: Hub = asgi.app.state.stream
    with serving(asgi) as served:
        stalled = open_stream(served.port, "/v1/events?after=0")
        reader = open_stream(served.port, "/v1/events?after=0")
        until(lambda: sum(hub.clients.values()) == 2)
        add_events(asgi, 150, size=100_000)
        end = last_id(asgi)
        assert ids(read_until(reader, b"id: %d\n" % end, 20)) == list(range(1, end + 1))
        until(lambda: sum(hub.clients.values()) == 1)
        drain(stalled)
        stalled.close()
        reader.close()


def test_streams_are_bounded(asgi: Asgi, monkeypatch: pytest.MonkeyPatch) -> None:
    from server.api import events

    monkeypatch.setattr(events, "MAX_STREAMS", 0)
    answer = asgi.get("/v1/events", headers={"accept": "text/event-stream"})
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")


@pytest.mark.parametrize("given", ["abc", "-1", "9" * 40, "1.5", "", "١"])
def test_a_nonsense_last_event_id_is_as_good_as_none(asgi: Asgi, given: str) -> None:
    asgi.create()
    from server.api.events import _number

    assert _number(given) is None


def test_accept_decides(asgi: Asgi) -> None:
    asgi.create()
    for accept in ("application/json", "*/*", "application/json, text/event-stream;q=0.5"):
        answer = asgi.get("/v1/runs/demo/events", headers={"accept": accept})
        assert answer.headers["content-type"] == "application/json"
    assert asgi.get("/v1/events", headers={"accept": "text/html"}).status_code == 406
    assert asgi.get("/v1/events", headers={"accept": "application/json;q=0"}).status_code == 406


def test_a_silent_stream_has_a_heartbeat(asgi: Asgi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "HEARTBEAT_SECONDS", 0.05)
    with serving(asgi) as served, closing(open_stream(served.port, "/v1/events")) as sock:
        read_until(sock, b": heartbeat\n\n")


def test_the_hub_reads_each_row_once_for_any_number_of_clients() -> None:
    """Law: whatever the interleaving, every client gets every row once, in order."""
    rows: list[BufferedEvent] = []
    reads: list[int] = []

    def events(after: int, run_id: str | None, limit: int) -> list[BufferedEvent]:
        reads.append(after)
        found = [row for row in rows if row.id > after and run_id in (None, row.run_id)]
        return found[:limit]

    class Feed:
        version = 0

        async def wait(self, after: int, seconds: float) -> int:
            await asyncio.sleep(0.01)
            return 0

    source = EventSource(events, lambda: rows[-1].id if rows else 0, lambda run_ids: {})

    async def client(hub: Hub, run_id: str | None, total: int) -> list[int]:
        await hub.join(run_id)
        position, got = 0, []
        while position < total:
            found, position = await hub.events_after(position, run_id)
            got += [row.id for row in found]
            await hub.news(0.02)
        hub.leave(run_id)
        return got

    async def scene() -> list[Any]:
        hub = Hub(source, Feed())  # type: ignore[arg-type]
        total = KEPT_EVENTS * 2
        clients = [
            asyncio.create_task(client(hub, run_id, total)) for run_id in (None, "a", "b", None)
        ]
        for number in range(1, total + 1):
            rows.append(BufferedEvent(number, "ab"[number % 2], b""))
            if number % 37 == 0:
                await asyncio.sleep(0.005)
        return [*await asyncio.gather(*clients), hub]

    everything, evens, odds, again, hub = asyncio.run(scene())
    assert everything == again == list(range(1, KEPT_EVENTS * 2 + 1))
    assert evens == [n for n in everything if "ab"[n % 2] == "a"]
    assert odds == [n for n in everything if "ab"[n % 2] == "b"]
    assert hub.clients == {}


def test_the_response_ends_when_the_client_leaves_though_it_never_reads() -> None:
    """The task is freed by the disconnect, not by a failed send."""

    async def scene() -> float:
        hub = Hub(EventSource(lambda *_: [], lambda: 0, lambda _: {}), _StillFeed())  # type: ignore[arg-type]
        gone = asyncio.Event()

        async def receive() -> Message:
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            if message.get("body"):
                await asyncio.sleep(3600)

        task = asyncio.create_task(sse.EventStream(hub, None, 0)({}, receive, send))
        await asyncio.sleep(0.05)
        began = time.monotonic()
        gone.set()
        await task
        return time.monotonic() - began

    assert asyncio.run(scene()) < 1.0


class _StillFeed:
    version = 0

    async def wait(self, after: int, seconds: float) -> int:
        await asyncio.sleep(seconds)
        return 0
