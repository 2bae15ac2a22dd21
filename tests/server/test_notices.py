"""Notices: told once for each URL, kept over failures and restarts, signed."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from server import notices, receivers, states
from server.database import tables
from server.main import create_app
from server.notices import GIVE_UP_SECONDS, Notices
from server.queries import store
from server.settings import Settings
from server.states import State
from tests.server.asgi import Asgi
from tests.server.live_server import until
from trainer.contract.exits import Reason

URL = "http://127.0.0.1:9/hook"


class Receiver:
    """What a receiver got; while `takes` is False it takes nothing."""

    def __init__(self) -> None:
        self.takes = True
        self.got: list[dict[str, Any]] = []

    def __call__(self, url: str, body: bytes, headers: dict[str, str]) -> bool:
        if self.takes:
            self.got.append(json.loads(body) | {"url": url})
        return self.takes

    @property
    def told(self) -> list[tuple[str, str]]:
        return [(one["what"], one["run"]["name"]) for one in self.got]


def happen(asgi: Asgi, name: str, *moves: State, reason: Reason = Reason.requested) -> None:
    with asgi.db.write() as session:
        for state in moves:
            states.move(session, store.get_run(session, name), state, reason)


def fresh(asgi: Asgi, receiver: Receiver) -> Notices:
    """As after a start of the daemon."""
    return Notices(asgi.db, asgi.settings.paths.root, receiver)


LIFE = (State.preparing, State.starting, State.running)


def test_each_thing_is_told_once_to_each_url(asgi: Asgi) -> None:
    receiver = Receiver()
    fresh(asgi, receiver).look(0.0)
    asgi.create("demo", notify=[URL, URL + "2"])
    asgi.create("mute")
    happen(asgi, "mute", *LIFE, State.completed)
    happen(asgi, "demo", *LIFE)
    happen(asgi, "demo", State.recovering, reason=Reason.stalled)
    happen(asgi, "demo", State.starting, State.running)
    with asgi.db.write() as session:
        run = store.get_run(session, "demo")
        session.add(
            tables.Event(run_id=run.id, kind="loss_spike", step=7, message="up", unix_seconds=1.0)
        )
    happen(asgi, "demo", State.completed)
    answer = asgi.post("/v1/runs/demo/extend", {"to_step": 400})
    assert answer.status_code == 202, answer.text
    happen(asgi, "demo", State.failed, reason=Reason.crashed)
    for now in (1.0, 2.0):
        fresh(asgi, receiver).look(now)
    whats = ["stalled", "spike", "completed", "extended", "failed"]
    assert receiver.told == [(what, "demo") for what in whats for _ in range(2)]
    assert {one["url"] for one in receiver.got} == {URL, URL + "2"}
    assert next(one for one in receiver.got if one["what"] == "spike")["step"] == 7


def test_what_was_not_taken_is_tried_again_later_also_after_a_restart(asgi: Asgi) -> None:
    receiver = Receiver()
    fresh(asgi, receiver).look(0.0)
    asgi.create("demo", notify=[URL])
    happen(asgi, "demo", State.failed, reason=Reason.crashed)
    receiver.takes = False
    due = fresh(asgi, receiver).look(100.0)
    assert due == 105.0
    assert fresh(asgi, receiver).look(105.0) == 135.0
    receiver.takes = True
    assert fresh(asgi, receiver).look(134.0) == 135.0
    assert receiver.got == []
    assert fresh(asgi, receiver).look(135.0) is None
    assert receiver.told == [("failed", "demo")]


def test_a_receiver_that_never_answers_is_given_up(asgi: Asgi) -> None:
    receiver = Receiver()
    fresh(asgi, receiver).look(0.0)
    asgi.create("demo", notify=[URL])
    happen(asgi, "demo", State.failed, reason=Reason.crashed)
    receiver.takes, now, tries = False, 1.0, 0
    while (due := fresh(asgi, receiver).look(now)) is not None:
        now, tries = due, tries + 1
    assert now > GIVE_UP_SECONDS
    assert tries < 100


def test_the_past_is_not_told_when_it_first_looks_nor_after_a_broken_file(asgi: Asgi) -> None:
    receiver = Receiver()
    asgi.create("demo", notify=[URL])
    happen(asgi, "demo", State.failed, reason=Reason.crashed)
    fresh(asgi, receiver).look(0.0)
    (asgi.settings.paths.root / notices.PLACE).write_bytes(b"{")
    fresh(asgi, receiver).look(1.0)
    assert receiver.got == []


@pytest.fixture
def hook(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A receiver over HTTP: `.url`, and `.got` as (body, headers)."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    got: list[tuple[bytes, Any]] = []

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append((self.rfile.read(int(self.headers["Content-Length"])), self.headers))
            self.send_response(204 if self.path == "/hook" else 500)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Hook) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        server.got, server.url = got, f"http://127.0.0.1:{server.server_port}"  # type: ignore[attr-defined]
        yield server
        server.shutdown()
        thread.join()


def test_over_http_it_is_signed_and_nothing_waits_for_it(asgi: Asgi, hook: Any) -> None:
    made = Notices(asgi.db, asgi.settings.paths.root, receivers.tell)
    made.look(0.0)
    made.start()
    asgi.create("demo", notify=[f"{hook.url}/hook"])
    happen(asgi, "demo", State.cancelled)  # which nobody has to be told
    asgi.create("other", notify=[f"{hook.url}/hook"])
    happen(asgi, "other", State.failed, reason=Reason.crashed)
    until(lambda: hook.got)
    made.stop()
    ((body, headers),) = hook.got
    secret = (asgi.settings.paths.root / notices.SECRET).read_bytes().strip()
    assert headers["Traind-Signature"] == (
        f"sha256={hmac.new(secret, body, hashlib.sha256).hexdigest()}"
    )
    assert json.loads(body)["run"]["name"] == "other"
    assert (Path(asgi.settings.paths.root) / notices.SECRET).stat().st_mode & 0o077 == 0


def test_only_a_2xx_counts(hook: Any) -> None:
    assert receivers.tell(f"{hook.url}/hook", b"{}", {})
    assert not receivers.tell(f"{hook.url}/other", b"{}", {})
    assert not receivers.tell("http://127.0.0.1:1/", b"{}", {})


def test_apprise_tells_what_it_knows_how_to_reach(asgi: Asgi, hook: Any) -> None:
    """Its plainest service: a POST of title and message."""
    made = Notices(asgi.db, asgi.settings.paths.root, receivers.tell)
    made.look(0.0)
    asgi.create("demo", notify=[hook.url.replace("http://", "json://") + "/hook"])
    happen(asgi, "demo", State.failed, reason=Reason.crashed)
    assert made.look(0.0) is None
    ((body, _),) = hook.got
    told = json.loads(body)
    assert told["title"] == "demo: failed"
    assert "(step 0 of 200)" in told["message"]


def test_apprise_says_when_a_service_took_nothing(hook: Any) -> None:
    body = json.dumps(
        {"what": "failed", "message": "", "step": 1, "run": {"name": "x", "end_step": 2}}
    )
    service = hook.url.replace("http://", "json://")
    assert receivers.tell(f"{service}/hook", body.encode(), {})
    assert not receivers.tell(f"{service}/other", body.encode(), {})
    assert not receivers.tell("nosuch://there", body.encode(), {})


@pytest.mark.parametrize(
    ("installed", "word"), [(True, "apprise knows no such"), (False, "traind[notify]")]
)
def test_an_address_that_cannot_be_told_is_refused(
    asgi: Asgi, monkeypatch: pytest.MonkeyPatch, installed: bool, word: str
) -> None:
    if not installed:
        monkeypatch.setattr(receivers, "find_spec", lambda name: None)
    asgi.create("there")
    before = asgi.get("/v1/runs/there").json()
    notify = ["https://example.org/hook", "nosuch://there"]
    for answer in (
        asgi.post("/v1/runs", {"name": "demo", "notify": notify}),
        asgi.request("PATCH", "/v1/runs/there", json={"notify": notify}),
    ):
        assert answer.status_code == 422
        [error] = answer.json()["errors"]
        assert error["pointer"] == "/notify/1"
        assert word in error["detail"]
    assert asgi.get("/v1/runs/demo").status_code == 404
    assert asgi.get("/v1/runs/there").json() == before


def test_a_web_address_needs_no_apprise(monkeypatch: pytest.MonkeyPatch, hook: Any) -> None:
    monkeypatch.setattr(receivers, "find_spec", lambda name: None)
    assert receivers.why_not("https://example.org/hook") is None
    assert receivers.tell(f"{hook.url}/hook", b"{}", {})
    assert not receivers.tell(
        "json://127.0.0.1/hook",
        b'{"run": {"name": "x", "end_step": 2}, "what": "failed", "message": "", "step": 1}',
        {},
    )


@pytest.mark.parametrize("url", ["no address", "://x", "https:// x", "mailto:me@example.org"])
def test_what_is_no_address_is_refused(asgi: Asgi, url: str) -> None:
    answer = asgi.post("/v1/runs", {"name": "demo", "notify": [url]})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == "/notify/0"


def test_the_daemon_tells(settings: Settings) -> None:
    app = create_app(settings)

    async def live() -> None:
        async with app.router.lifespan_context(app):
            place = settings.paths.root / notices.PLACE
            await asyncio.to_thread(until, place.exists)

    asyncio.run(live())
