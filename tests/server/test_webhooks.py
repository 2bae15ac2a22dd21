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

from server import webhook_receivers
from server.database import tables
from server.domain import states
from server.domain.states import State
from server.events import webhooks
from server.events.webhooks import GIVE_UP_SECONDS, WebhookThread
from server.main import create_app
from server.queries import run_views
from server.settings import Settings
from tests.server import rows
from tests.server.asgi import Asgi
from tests.server.live_server import until
from trainer.contract.reasons import Reason

URL = "http://127.0.0.1:9/hook"


class Receiver:
    """What a receiver got; while `takes` is False it takes nothing."""

    def __init__(self) -> None:
        self.takes = True
        self.got: list[dict[str, Any]] = []

    def __call__(self, url: str, body: bytes, headers: dict[str, str]) -> str | None:
        if self.takes:
            self.got.append(json.loads(body) | {"url": url})
        return None if self.takes else "it answered 400"

    @property
    def told(self) -> list[tuple[str, str]]:
        return [(one["what"], one["run"]["name"]) for one in self.got]


def happen(asgi: Asgi, name: str, *moves: State, reason: Reason = Reason.requested) -> None:
    with asgi.db.write() as session:
        for state in moves:
            states.move(session, run_views.get_run(session, name), state, reason)


def fresh(asgi: Asgi, receiver: Receiver) -> WebhookThread:
    """As after a start of the daemon."""
    return WebhookThread(asgi.db, asgi.settings.paths.root, receiver)


LIFE = (State.preparing, State.starting, State.running)


def test_each_thing_is_told_once_to_each_url(asgi: Asgi) -> None:
    receiver = Receiver()
    fresh(asgi, receiver).run_once(0.0)
    asgi.create("demo", notify=[URL, URL + "2"])
    asgi.create("mute")
    happen(asgi, "mute", *LIFE, State.completed)
    happen(asgi, "demo", *LIFE)
    happen(asgi, "demo", State.recovering, reason=Reason.stalled)
    happen(asgi, "demo", State.starting, State.running)
    with asgi.db.write() as session:
        run = run_views.get_run(session, "demo")
        session.add(
            tables.Event(run_id=run.id, kind="loss_spike", step=7, message="up", unix_seconds=1.0)
        )
    happen(asgi, "demo", State.completed)
    answer = asgi.post("/v1/runs/demo/extend", {"to_step": 400})
    assert answer.status_code == 202, answer.text
    happen(asgi, "demo", State.failed, reason=Reason.crashed)
    for now in (1.0, 2.0):
        fresh(asgi, receiver).run_once(now)
    whats = ["stalled", "spike", "completed", "extended", "failed"]
    assert receiver.told == [(what, "demo") for what in whats for _ in range(2)]
    assert {one["url"] for one in receiver.got} == {URL, URL + "2"}
    assert next(one for one in receiver.got if one["what"] == "spike")["step"] == 7


def test_what_was_not_taken_is_tried_again_later_also_after_a_restart(asgi: Asgi) -> None:
    receiver = Receiver()
    fresh(asgi, receiver).run_once(0.0)
    asgi.create("demo", notify=[URL])
    happen(asgi, "demo", State.failed, reason=Reason.crashed)
    receiver.takes = False
    due = fresh(asgi, receiver).run_once(100.0)
    assert due == 105.0
    assert fresh(asgi, receiver).run_once(105.0) == 135.0
    receiver.takes = True
    assert fresh(asgi, receiver).run_once(134.0) == 135.0
    assert receiver.got == []
    assert fresh(asgi, receiver).run_once(135.0) is None
    assert receiver.told == [("failed", "demo")]


def test_a_receiver_that_never_answers_is_given_up(asgi: Asgi) -> None:
    receiver = Receiver()
    fresh(asgi, receiver).run_once(0.0)
    asgi.create("demo", notify=[URL])
    happen(asgi, "demo", State.failed, reason=Reason.crashed)
    receiver.takes, now, tries = False, 1.0, 0
    while (due := fresh(asgi, receiver).run_once(now)) is not None:
        now, tries = due, tries + 1
    assert now > GIVE_UP_SECONDS
    assert tries < 100


def test_a_machine_that_slept_for_a_week_still_tries(asgi: Asgi) -> None:
    receiver = Receiver()
    fresh(asgi, receiver).run_once(0.0)
    asgi.create("demo", notify=[URL])
    happen(asgi, "demo", State.failed, reason=Reason.crashed)
    receiver.takes = False
    fresh(asgi, receiver).run_once(1.0)
    now = 7 * 86_400.0
    due = fresh(asgi, receiver).run_once(now)  # the network is not up yet
    assert due is not None
    receiver.takes = True
    fresh(asgi, receiver).run_once(due)
    assert receiver.told == [("failed", "demo")]


def test_a_clock_that_was_wrong_delays_no_notice(asgi: Asgi) -> None:
    receiver = Receiver()
    fresh(asgi, receiver).run_once(0.0)
    asgi.create("demo", notify=[URL])
    happen(asgi, "demo", State.failed, reason=Reason.crashed)
    receiver.takes = False
    fresh(asgi, receiver).run_once(10 * 365 * 86_400.0)  # before the time server set it right
    receiver.takes = True
    fresh(asgi, receiver).run_once(1000.0)
    assert receiver.told == [("failed", "demo")]


def test_a_run_deleted_at_once_still_tells(asgi: Asgi) -> None:
    receiver = Receiver()
    notices = fresh(asgi, receiver)
    notices.run_once(0.0)
    asgi.app.state.notices = notices
    asgi.create("demo", notify=[URL])
    happen(asgi, "demo", *LIFE, State.completed)
    assert asgi.request("DELETE", "/v1/runs/demo").status_code == 204
    fresh(asgi, receiver).run_once(1e12)
    assert receiver.told == [("completed", "demo")]


def test_the_past_is_not_told_when_it_first_looks_nor_after_a_broken_file(asgi: Asgi) -> None:
    receiver = Receiver()
    asgi.create("demo", notify=[URL])
    happen(asgi, "demo", State.failed, reason=Reason.crashed)
    fresh(asgi, receiver).run_once(0.0)
    (asgi.settings.paths.root / webhooks.PLACE).write_bytes(b"{")
    fresh(asgi, receiver).run_once(1.0)
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
    made = WebhookThread(asgi.db, asgi.settings.paths.root, webhook_receivers.deliver)
    made.run_once(0.0)
    made.start()
    asgi.create("demo", notify=[f"{hook.url}/hook"])
    happen(asgi, "demo", State.cancelled)  # which nobody has to be told
    asgi.create("other", notify=[f"{hook.url}/hook"])
    happen(asgi, "other", State.failed, reason=Reason.crashed)
    until(lambda: hook.got)
    made.stop()
    ((body, headers),) = hook.got
    secret = (asgi.settings.paths.root / webhooks.SECRET).read_bytes().strip()
    assert headers["Traind-Signature"] == (
        f"sha256={hmac.new(secret, body, hashlib.sha256).hexdigest()}"
    )
    assert json.loads(body)["run"]["name"] == "other"
    assert (Path(asgi.settings.paths.root) / webhooks.SECRET).stat().st_mode & 0o077 == 0


def test_only_a_2xx_counts(hook: Any) -> None:
    assert webhook_receivers.deliver(f"{hook.url}/hook", b"{}", {}) is None
    assert webhook_receivers.deliver(f"{hook.url}/other", b"{}", {}) == "it answered 500"
    assert "refused" in (webhook_receivers.deliver("http://127.0.0.1:1/", b"{}", {}) or "")


def test_apprise_tells_what_it_knows_how_to_reach(asgi: Asgi, hook: Any) -> None:
    """Its plainest service: a POST of title and message."""
    made = WebhookThread(asgi.db, asgi.settings.paths.root, webhook_receivers.deliver)
    made.run_once(0.0)
    asgi.create("demo", notify=[hook.url.replace("http://", "json://") + "/hook"])
    happen(asgi, "demo", State.failed, reason=Reason.crashed)
    assert made.run_once(0.0) is None
    ((body, _),) = hook.got
    told = json.loads(body)
    assert told["title"] == "demo: failed"
    assert "(step 0 of 200)" in told["message"]


def test_apprise_says_when_a_service_took_nothing(hook: Any) -> None:
    body = json.dumps(
        {"what": "failed", "message": "", "step": 1, "run": {"name": "x", "end_step": 2}}
    )
    service = hook.url.replace("http://", "json://")
    assert webhook_receivers.deliver(f"{service}/hook", body.encode(), {}) is None
    assert webhook_receivers.deliver(f"{service}/other", body.encode(), {})
    assert webhook_receivers.deliver("nosuch://there", body.encode(), {})


@pytest.mark.parametrize(
    ("installed", "word"), [(True, "apprise does not recognise"), (False, "traind[notify]")]
)
def test_an_address_that_cannot_be_told_is_refused(
    asgi: Asgi, monkeypatch: pytest.MonkeyPatch, installed: bool, word: str
) -> None:
    if not installed:
        monkeypatch.setattr(webhook_receivers, "find_spec", lambda name: None)
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
    monkeypatch.setattr(webhook_receivers, "find_spec", lambda name: None)
    assert webhook_receivers.why_not("https://example.org/hook") is None
    assert webhook_receivers.deliver(f"{hook.url}/hook", b"{}", {}) is None
    assert webhook_receivers.deliver(
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
            place = settings.paths.root / webhooks.PLACE
            await asyncio.to_thread(until, place.exists)

    asyncio.run(live())


# --- at least once, whatever fails ---------------------------------------------------------------


@pytest.fixture
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "ssl_cert_file"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


CANNOT_BE_MADE = [
    ("ALL_PROXY", "socks5://127.0.0.1:1", "http://example.org/hook"),
    ("HTTP_PROXY", "nonsense://127.0.0.1:1", "http://example.org/hook"),
    ("SSL_CERT_FILE", "/nowhere/certificates.pem", "https://127.0.0.1:1/hook"),
    ("SSL_CERT_FILE", "/nowhere/certificates.pem", "https://example.org/hook"),
]


@pytest.mark.parametrize(("variable", "value", "url"), CANNOT_BE_MADE)
def test_a_client_that_cannot_be_made_loses_no_notice(
    asgi: Asgi, monkeypatch: pytest.MonkeyPatch, no_proxies: None,
    variable: str, value: str, url: str,
) -> None:  # fmt: skip
    monkeypatch.setenv(variable, value)
    made = WebhookThread(asgi.db, asgi.settings.paths.root, webhook_receivers.deliver)
    made.run_once(0.0)
    asgi.create("demo", notify=[url])
    happen(asgi, "demo", State.failed, reason=Reason.crashed)
    assert made.run_once(100.0) == 105.0
    receiver = Receiver()
    assert fresh(asgi, receiver).run_once(105.0) is None
    assert receiver.told == [("failed", "demo")]


def test_a_secret_that_cannot_be_read_loses_no_notice(asgi: Asgi) -> None:
    receiver = Receiver()
    made = fresh(asgi, receiver)
    made.run_once(0.0)
    asgi.create("demo", notify=[URL])
    happen(asgi, "demo", State.failed, reason=Reason.crashed)
    secret = asgi.settings.paths.root / webhooks.SECRET
    secret.write_text("0123456789abcdef")
    secret.chmod(0o644)
    assert made.run_once(1.0) == 6.0
    secret.chmod(0o600)
    assert made.run_once(6.0) is None
    assert receiver.told == [("failed", "demo")]


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
@pytest.mark.parametrize("proxy", ["http://127.0.0.1:1", "socks5://127.0.0.1:1"])
def test_loopback_is_never_told_through_a_proxy(
    monkeypatch: pytest.MonkeyPatch, no_proxies: None, hook: Any, variable: str, proxy: str
) -> None:
    monkeypatch.delenv("NO_PROXY")
    monkeypatch.setenv(variable, proxy)
    monkeypatch.setenv("SSL_CERT_FILE", "/nowhere/certificates.pem")
    for url in (hook.url, hook.url.replace("127.0.0.1", "localhost")):
        assert webhook_receivers.deliver(f"{url}/hook", b"{}", {}) is None
    assert len(hook.got) == 2


def test_apprise_is_not_sent_through_a_proxy_to_loopback_either() -> None:
    environment = {"NO_PROXY": "box.lan"}
    webhook_receivers.spare_loopback(environment)
    assert environment["no_proxy"].split(",")[:2] == ["box.lan", "127.0.0.0/8"]
    assert environment["NO_PROXY"] == environment["no_proxy"]
    assert {"localhost", "::1"} <= set(environment["NO_PROXY"].split(","))


@pytest.mark.parametrize(
    ("host", "is_near"),
    [
        ("localhost", True), ("LOCALHOST.", True), ("x.localhost", True), ("127.9.9.9", True),
        ("::1", True), ("::ffff:127.0.0.1", True), ("10.0.0.1", False), ("localhost.org", False),
        ("", False),
    ],
)  # fmt: skip
def test_what_is_loopback(host: str, is_near: bool) -> None:
    assert webhook_receivers.is_loopback(host) is is_near


def said(asgi: Asgi, run: str) -> list[tuple[str, str]]:
    events = asgi.get(f"/v1/runs/{run}/events").json()["data"]
    return [(e["level"], e["message"]) for e in events if e["kind"] == webhooks.KIND]


def test_failures_are_events_of_the_run_and_a_warning_of_the_daemon(asgi: Asgi) -> None:
    url = "https://hooks.example.org/T0/secret"
    receiver = Receiver()
    made = asgi.app.state.notices = fresh(asgi, receiver)
    made.run_once(0.0)
    asgi.create("demo", notify=[url])
    happen(asgi, "demo", State.failed, reason=Reason.crashed)
    receiver.takes = False
    made.run_once(1.0)
    made.run_once(6.0)
    shown = "notice (failed) to https://hooks.example.org/***"
    first = ("warning", f"{shown} not delivered: it answered 400; it is retried for 3 d")
    assert said(asgi, "demo") == [first]  # once, however often it is tried
    [warning] = [w for w in asgi.get("/v1/system").json()["warnings"] if "notices" in w]
    assert warning.startswith(
        "notices to https://hooks.example.org/*** are not accepted: it answered"
    )
    receiver.takes = True
    made.run_once(36.0)
    assert said(asgi, "demo") == [first, ("info", f"{shown} delivered after 3 tries")]
    assert not [w for w in asgi.get("/v1/system").json()["warnings"] if "notice" in w]


def test_what_is_given_up_is_said_also_after_a_restart(asgi: Asgi) -> None:
    receiver = Receiver()
    fresh(asgi, receiver).run_once(0.0)
    asgi.create("demo", notify=[URL])
    happen(asgi, "demo", State.failed, reason=Reason.crashed)
    receiver.takes, now = False, 1.0
    while (due := fresh(asgi, receiver).run_once(now)) is not None:
        now = due
    level, message = said(asgi, "demo")[-1]
    assert (level, message) == (
        "error",
        "notice (failed) to http://127.0.0.1:9/*** given up: it was not accepted for 3 d "
        "(it answered 400)",
    )
    made = fresh(asgi, receiver)
    made.run_once(now)
    assert made.problems(now) == [
        "a notice (failed) to http://127.0.0.1:9/*** was given up: it answered 400"
    ]
    assert made.problems(now + webhooks.KEPT_FAILURES_SECONDS) == []


def test_a_dead_receiver_is_asked_once_a_look_and_holds_up_no_other(asgi: Asgi) -> None:
    asked: list[str] = []

    def deliver(url: str, body: bytes, headers: dict[str, str]) -> str | None:
        asked.append(url)
        return "it answered 400" if url == URL else None

    made = WebhookThread(asgi.db, asgi.settings.paths.root, deliver)
    made.run_once(0.0)
    for name in ("a", "b", "c"):
        asgi.create(name, notify=[URL, URL + "2"])
        happen(asgi, name, State.failed, reason=Reason.crashed)
    made.run_once(1.0)
    assert asked.count(URL) == 1
    assert asked.count(URL + "2") == 3


def test_a_receiver_that_answers_without_end_holds_up_nothing() -> None:
    """Only its status counts: a body that drips for ever is not waited for."""
    done = threading.Event()

    class Dripping(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"x")
            self.wfile.flush()
            done.wait(20)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Dripping) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        assert (
            webhook_receivers.deliver(f"http://127.0.0.1:{server.server_port}/", b"{}", {}) is None
        )
        done.set()
        thread.join()


# --- secrets in addresses ------------------------------------------------------------------------

MASKS = [
    ("https://hooks.slack.com/services/T0/B0/secret", "https://hooks.slack.com/***"),
    ("https://user:secret@example.org", "https://example.org/***"),
    ("https://example.org?token=secret", "https://example.org/***"),
    ("https://example.org:8443/#secret", "https://example.org:8443/***"),
    ("http://[::1]:80/secret", "http://[::1]:80/***"),
    ("https://example.org", "https://example.org"),
    ("https://example.org/", "https://example.org/"),
    ("tgram://123:secret/456", "tgram://***"),
    ("mailtos://me:secret@example.org", "mailtos://***"),
    ("ntfy://secret", "ntfy://***"),
    ("https://[secret/x", "https://***"),
    ("https://example.org:secret/x", "https://***"),
]


@pytest.mark.parametrize(("url", "mask"), MASKS)
def test_what_may_be_a_credential_is_masked(url: str, mask: str) -> None:
    assert webhook_receivers.masked(url) == mask
    assert webhook_receivers.masked(mask) == mask
    assert webhook_receivers.is_masked(mask) is (mask != url)
    assert webhook_receivers.unmasked([mask, "https://new.example"], [url]) == [
        url,
        "https://new.example",
    ]


SECRET_URLS = [
    "https://hooks.slack.com/services/T0/B0/s3cr3t-one",
    "https://hooks.slack.com/services/T0/B0/s3cr3t-two",
    "https://ops:s3cr3t-three@example.org/hook?key=s3cr3t-four",
]


def test_no_answer_shows_a_secret_and_a_masked_one_stays_what_it_is(asgi: Asgi) -> None:
    made = asgi.create("demo", notify=SECRET_URLS)
    masks = made["spec"]["notify"]
    assert masks == [
        "https://hooks.slack.com/***", "https://hooks.slack.com/***2", "https://example.org/***",
    ]  # fmt: skip
    with asgi.db.write() as session:  # a preparation of an earlier version
        run = run_views.get_run(session, "demo")
        session.add(
            rows.job(
                id="job_1", run_id=run.id, kind="prepare", where="cpu", state="failed", token="t",
                params={"spec": run.spec}, created_at=1.0,
            )
        )  # fmt: skip
    change = asgi.request("PATCH", "/v1/runs/demo", json={"title": "t", "notify": masks})
    fewer = asgi.request("PATCH", "/v1/runs/demo", json={"notify": [masks[1], masks[2], URL]})
    assert fewer.json()["spec"]["notify"] == [
        "https://hooks.slack.com/***", "https://example.org/***", "http://127.0.0.1:9/***",
    ]  # fmt: skip
    with asgi.db.read() as session:
        assert run_views.get_run(session, "demo").spec["notify"] == [*SECRET_URLS[1:], URL]
    answers = [
        change, fewer,
        asgi.post("/v1/plan", {"name": "x", "notify": SECRET_URLS}),
        asgi.post("/v1/runs", {"name": "x", "notify": ["no://s3cr3t s"]}),
        asgi.post("/v1/runs", {"name": "x", "notify": ["s3cr3t"]}),
        asgi.post("/v1/runs", {"name": "x", "notify": ["https://s3cr3t.example/" + "x" * 3000]}),
        *(
            asgi.get(path, headers={"Accept": accept})
            for path, accept in (
                ("/v1/runs", "*/*"), ("/v1/runs/demo", "*/*"), ("/v1/jobs", "*/*"),
                ("/v1/jobs/job_1", "*/*"), ("/v1/runs/demo/events", "*/*"), ("/metrics", "*/*"),
                ("/v1/runs/demo/report", "text/markdown"), ("/v1/runs/demo/report", "text/html"),
                ("/v1/runs/demo/report", "application/json"), ("/v1/system", "*/*"),
            )
        ),
    ]  # fmt: skip
    for answer in answers:
        assert "s3cr3t" not in answer.text, answer.request.url


def test_a_masked_address_is_no_address(asgi: Asgi) -> None:
    asgi.create("demo", notify=[URL])
    for answer in (
        asgi.post("/v1/runs", {"name": "other", "notify": ["http://127.0.0.1:9/***"]}),
        asgi.request("PATCH", "/v1/runs/demo", json={"notify": ["https://example.org/***"]}),
    ):
        assert answer.status_code == 422
        [error] = answer.json()["errors"]
        assert error["pointer"] == "/notify/0"
        assert "masked" in error["detail"]


@pytest.mark.parametrize("part", ["s3cr3t", "/a/s3cr3t", "user:s3cr3t@"])
def test_no_reason_repeats_a_secret(part: str, caplog: pytest.LogCaptureFixture) -> None:
    url = f"http://127.0.0.1:1/{part}" if "@" not in part else f"http://{part}127.0.0.1:1"
    why = webhook_receivers.deliver(url, b"{}", {})
    assert why
    assert "s3cr3t" not in why + caplog.text
