"""Who may call. The matrix is made from the app's own routes: a new one is guarded by being there.

Every request is sent through the whole app. A canary replaces nothing: what is refused must not
have changed the database, which the number of its commits shows.
"""

from __future__ import annotations

import itertools
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.routing import Route

from server.guard import access
from server.guard.access import BindRefused, policy_for
from server.guard.tokens import MAX_SESSIONS, AccessTokens, TokenUnusable, read_or_make
from server.settings import Settings
from tests.server.asgi import Asgi

UNSAFE = ("POST", "PATCH", "DELETE", "PUT")


class Sample(dict[str, str]):
    """A value for each parameter of a path, also for one that did not exist when this was said."""

    def __missing__(self, name: str) -> str:
        return "x"


SAMPLE = Sample(
    run="demo", job="job_0", checkpoint="step-000000001-a0001", name="dom.js"
)  # fmt: skip


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asgi]:
    """On loopback, without a token."""
    made = Asgi(tmp_path_factory.mktemp("open"))
    made.create(start=False)
    yield made
    made.close()


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asgi]:
    """With a token."""
    made = Asgi(tmp_path_factory.mktemp("guarded"), auth="always")
    yield made
    made.close()


def token_of(asgi: Asgi) -> str:
    return (asgi.settings.paths.root / "token").read_text().strip()


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


def every_route(asgi: Asgi) -> list[tuple[str, str]]:
    """(method, path) of each route there is, and of each method that it does not offer."""
    paths = {route.path for route in asgi.app.state.routes}
    return [
        (method, path.replace(":path", "").format_map(SAMPLE))
        for path, method in itertools.product(sorted(paths), ("GET", "HEAD", *UNSAFE))
    ]


def test_a_new_route_is_in_the_matrix_by_being_there(opened: Asgi) -> None:
    """What is not listed would not be asked; a parameter nobody knows yet has a value too."""
    listed = {route.path for route in opened.app.state.routes}
    assert opened.app.openapi()["paths"].keys() <= {path.replace(":path", "") for path in listed}
    assert [r for r in opened.app.routes if isinstance(r, Route)] == []  # none beside the routers
    assert "/v1/{new}".format_map(SAMPLE) == "/v1/x"


def events(asgi: Asgi) -> int:
    with asgi.db.read() as session:
        return session.connection().exec_driver_sql("SELECT count(*) FROM events").scalar_one()


FOREIGN_HOSTS = [
    "evil.example", "evil.example:8321", "127.0.0.1.evil.example", "localhost.evil.example",
    "127.0.0.1@evil.example", "evil.example#127.0.0.1", "[::1].evil.example", "", "127.0.0.1:x",
    "127.0.0.1:99999", "10.0.0.1", "0.0.0.0", "[::]", "2130706433", "127.1", "*",
]  # fmt: skip


def test_f51_a_foreign_host_is_refused_everywhere(opened: Asgi) -> None:
    before = events(opened)
    for method, path in every_route(opened):
        answer = opened.request(method, path, headers={"host": "evil.example"})
        assert answer.status_code == 403, (method, path)
    for host in FOREIGN_HOSTS:
        assert opened.get("/v1/runs", headers={"host": host}).status_code == 403, host
    assert events(opened) == before


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.0.0.1:1", "localhost:9999", "LOCALHOST", "[::1]:8321", "localhost."]
)
def test_our_names_are_answered_with_any_port(opened: Asgi, host: str) -> None:
    """An ssh -L tunnel comes with a port of its own."""
    assert opened.get("/v1/runs", headers={"host": host}).status_code == 200


FOREIGN_ORIGINS = [
    {"origin": "https://evil.example"},
    {"origin": "null"},
    {"origin": "http://localhost:3000"},
    {"origin": "http://127.0.0.1"},
    {"origin": "http://127.0.0.1:8321.evil.example"},
    {"origin": "file://127.0.0.1:8321"},
    {"origin": ""},
    {"sec-fetch-site": "cross-site"},
    {"sec-fetch-site": "cross-site", "origin": "http://127.0.0.1:8321"},
]


@pytest.mark.parametrize("headers", FOREIGN_ORIGINS)
def test_f51_no_other_page_changes_anything(opened: Asgi, headers: dict[str, str]) -> None:
    before = events(opened)
    for method, path in every_route(opened):
        answer = opened.request(method, path, headers=headers)
        if method in UNSAFE:
            assert answer.status_code == 403, (method, path)
            assert answer.json()["type"] == "urn:traind:problem:forbidden"
        else:
            is_cross_site = headers.get("sec-fetch-site") == "cross-site"
            assert (answer.status_code == 403) is is_cross_site, (method, path)
    assert events(opened) == before


VISIT = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}
CLICK = VISIT | {"sec-fetch-user": "?1"}


@pytest.mark.parametrize(
    ("path", "headers", "may"),
    [
        ("/", VISIT, True),
        ("/v1/runs/demo/report", CLICK, True),
        ("/v1/runs/demo/report", VISIT, False),  # a script that moves its own tab
        ("/v1/runs/demo/report", CLICK | {"sec-purpose": "prefetch"}, False),
        ("/v1/runs/demo/report", CLICK | {"sec-fetch-dest": "iframe"}, False),
        ("/metrics", VISIT | {"sec-fetch-mode": "no-cors", "sec-fetch-dest": "image"}, False),
        ("/metrics", VISIT | {"sec-fetch-mode": "cors", "sec-fetch-dest": "empty"}, False),
        ("/favicon.ico", VISIT | {"sec-fetch-mode": "no-cors", "sec-fetch-dest": "image"}, False),
        ("/metrics", {"sec-fetch-site": "same-site"}, True),
        ("/metrics", {"sec-fetch-site": "same-origin"}, True),
        ("/metrics", {"sec-fetch-site": "none"}, True),
    ],
)
def test_f51_a_page_of_another_site_asks_for_nothing_but_a_visit(
    opened: Asgi, path: str, headers: dict[str, str], may: bool
) -> None:
    for method in ("GET", "HEAD"):
        answer = opened.request(method, path, headers=headers)
        assert answer.status_code == (200 if may else 403), answer.text


# --- behind a proxy ------------------------------------------------------------------------------

FORWARDED = [
    {"x-forwarded-for": "203.0.113.9"}, {"forwarded": "for=203.0.113.9"}, {"via": "1.1 proxy"},
    {"x-forwarded-host": "box.example"}, {"x-real-ip": "203.0.113.9"},
    {"x-forwarded-proto": "https"},
]  # fmt: skip


@pytest.mark.parametrize("headers", FORWARDED)
def test_what_a_proxy_forwards_is_refused_without_a_token(
    opened: Asgi, headers: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    before = events(opened)
    for method, path in every_route(opened):
        answer = opened.request(method, path, headers=headers)
        if path not in WITHOUT_TOKEN:
            assert answer.status_code == 403, (method, path)
    answer = opened.get("/v1/runs", headers=headers)
    assert "--auth always" in answer.json()["hint"]
    assert "--auth always" in caplog.text
    assert events(opened) == before


@pytest.mark.parametrize("headers", FORWARDED)
def test_what_a_proxy_forwards_is_answered_with_the_token(
    guarded: Asgi, headers: dict[str, str]
) -> None:
    given = headers | bearer(token_of(guarded))
    assert guarded.get("/v1/runs", headers=given).status_code == 200


def test_the_hint_about_a_name_says_that_a_proxy_needs_a_token(opened: Asgi, guarded: Asgi) -> None:
    foreign = {"host": "box.example"}
    assert "--auth always" in opened.get("/v1/runs", headers=foreign).json()["hint"]
    assert "--auth" not in guarded.get("/v1/runs", headers=foreign).json()["hint"]


# --- HEAD ----------------------------------------------------------------------------------------


def test_head_is_answered_wherever_get_is(opened: Asgi) -> None:
    """With the same status and headers, and without a body; streams end with their headers."""
    paths = {path for method, path in every_route(opened) if method == "GET"}
    for path in sorted(paths):
        for accept in ("*/*", "text/event-stream"):
            if accept == "text/event-stream" and not path.endswith("/events"):
                continue
            # a compressed answer has another length than HEAD's, which describes the plain one
            headers = {"accept": accept, "accept-encoding": "identity"}
            head = opened.request("HEAD", path, headers=headers)
            assert head.content == b"", path
            if accept == "*/*":
                got = opened.get(path, headers=headers)
                kept = ("content-type", "content-length", "etag", "allow")
                told = [{k: a.headers.get(k) for k in kept} for a in (got, head)]
                if path not in ("/metrics", "/v1/system"):  # whose numbers move
                    assert told[0] == told[1], path
                assert head.status_code == got.status_code, path
            else:
                assert head.status_code == 200, path
                assert head.headers["content-type"].startswith("text/event-stream")
    refused = opened.request("PUT", "/v1/runs")
    assert refused.headers["allow"] == "GET, HEAD, POST"


def test_our_own_page_may(opened: Asgi) -> None:
    ours = {"origin": "http://localhost:9000", "host": "localhost:9000"}
    ours["sec-fetch-site"] = "same-origin"
    assert opened.post("/v1/plan", {"name": "x"}, headers=ours).status_code == 200


def test_a_doubled_host_or_origin_is_refused(opened: Asgi) -> None:
    for name, value in (("host", "127.0.0.1"), ("origin", "http://127.0.0.1:8321")):
        doubled = [(name, value), (name, value)]
        assert opened.post("/v1/plan", {"name": "x"}, headers=doubled).status_code == 403


def test_f51_a_forged_form_post_needs_no_origin_to_be_refused(opened: Asgi) -> None:
    """Old browsers send none; the type of the body gives a form away."""
    answer = opened.request(
        "POST", "/v1/runs", content=b'{"name": "csrf"}', headers={"content-type": "text/plain"}
    )
    assert answer.status_code == 415
    assert opened.get("/v1/runs/csrf").status_code == 404


def test_every_answer_carries_the_headers_of_a_careful_server(opened: Asgi) -> None:
    for path in ("/", "/v1/runs", "/v1/nothing", "/metrics", "/static/dom.js", "/docs"):
        answer = opened.get(path)
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["x-frame-options"] == "DENY"
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
        assert "access-control-allow-origin" not in answer.headers


# --- tokens --------------------------------------------------------------------------------------

WITHOUT_TOKEN = {"/", "/docs", "/healthz", "/readyz", "/favicon.ico", "/static/dom.js"}


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer wrong"},
        {"authorization": "Bearer "},
        {"authorization": "Basic dXNlcjpwYXNz"},
        {"cookie": "traind_session=wrong"},
        {"cookie": "traind_session="},
    ],
)
def test_f50_without_the_token_nothing_is_answered(guarded: Asgi, headers: dict[str, str]) -> None:
    for method, path in every_route(guarded):
        answer = guarded.request(method, path, headers=headers)
        if path in WITHOUT_TOKEN:
            assert answer.status_code != 401, (method, path)
        else:
            assert answer.status_code == 401, (method, path)
            assert answer.headers["www-authenticate"].startswith("Bearer")


def test_the_page_of_the_api_is_a_page_and_its_document_wants_the_token(guarded: Asgi) -> None:
    page = guarded.get("/docs")
    assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert guarded.get("/openapi.json").status_code == 401


@pytest.mark.parametrize(
    "path", ["/static/../v1/runs", "/static/%2e%2e/v1/runs", "/static/..%2fv1/runs", "//v1/runs",
             "/v1/runs?x=/static/", "/healthz/../v1/runs", "/readyz/", "/v1/session"],
)  # fmt: skip
def test_no_detour_avoids_the_token(guarded: Asgi, path: str) -> None:
    assert guarded.get(path).status_code in (401, 404, 405)
    assert guarded.get(path).status_code != 200


def test_the_token_opens_every_door(guarded: Asgi) -> None:
    for path in ("/v1/runs", "/metrics", "/docs", "/openapi.json", "/v1/system"):
        assert guarded.get(path, headers=bearer(token_of(guarded))).status_code == 200


def test_a_browser_trades_it_for_a_cookie_and_gives_it_back(guarded: Asgi) -> None:
    token = token_of(guarded)
    answer = guarded.post("/v1/session", headers=bearer(token))
    assert answer.status_code == 204
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert token not in cookie
    held = {"cookie": cookie.partition(";")[0]}
    assert guarded.get("/v1/runs", headers=held).status_code == 200
    assert guarded.request("DELETE", "/v1/session", headers=held).status_code == 204
    assert guarded.get("/v1/runs", headers=held).status_code == 401


def test_sessions_survive_a_restart_and_end_with_the_token(tmp_path: Path) -> None:
    file = tmp_path / "sessions.json"
    secret = AccessTokens("a" * 20, file).open_session().encode()
    assert AccessTokens("a" * 20, file).is_session(secret)
    assert secret not in file.read_bytes()
    assert not AccessTokens("b" * 20, file).is_session(secret)


def test_sessions_are_bounded(tmp_path: Path) -> None:
    tokens = AccessTokens("a" * 20, tmp_path / "sessions.json")
    first, *_, last = [tokens.open_session().encode() for _ in range(MAX_SESSIONS + 1)]
    assert (tokens.is_session(first), tokens.is_session(last)) == (False, True)


def test_the_token_file_is_private_and_stays(tmp_path: Path) -> None:
    path = tmp_path / "token"
    token = read_or_make(path, ours=True)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert read_or_make(path, ours=True) == token
    path.chmod(0o644)
    with pytest.raises(TokenUnusable, match="chmod 600"):
        read_or_make(path, ours=True)
    path.chmod(0o600)
    path.write_text("short")
    with pytest.raises(TokenUnusable, match="at least 16"):
        read_or_make(path, ours=True)
    link = tmp_path / "link"
    link.symlink_to(path)
    with pytest.raises(TokenUnusable):
        read_or_make(link, ours=True)


def test_f50_start_up_matrix(tmp_path: Path) -> None:
    """(host, auth, allow_remote) -> whether it may start, and whether it asks for a token."""
    wanted = {
        ("127.0.0.1", "auto", False): False,
        ("localhost", "auto", True): False,
        ("::1", "auto", False): False,
        ("127.0.0.1", "always", False): True,
        ("0.0.0.0", "auto", True): True,
        ("192.168.1.5", "auto", True): True,
        ("::", "auto", True): True,
        ("0.0.0.0", "auto", False): None,
        ("192.168.1.5", "always", False): None,
        ("127.0.0.1.evil.example", "auto", False): None,
    }
    for (host, auth, remote), asks in wanted.items():
        settings = Settings(data_dir=tmp_path, host=host, auth=auth, allow_remote=remote)  # type: ignore[arg-type]
        if asks is None:
            with pytest.raises(BindRefused, match="--allow-remote"):
                policy_for(settings)
        else:
            assert (policy_for(settings).tokens is not None) is asks, host


def test_a_lan_address_is_answered_by_address_and_allowed_name(tmp_path: Path) -> None:
    settings = Settings(
        data_dir=tmp_path, host="0.0.0.0", allow_remote=True, allow_hosts=["Box.lan"]
    )
    policy = policy_for(settings)
    assert policy.allows_host("192.168.1.5")
    assert policy.allows_host("box.lan")
    assert not policy.allows_host("evil.example")


def test_f56_the_token_is_in_no_answer_and_no_log(
    guarded: Asgi, caplog: pytest.LogCaptureFixture
) -> None:
    token = token_of(guarded)
    caplog.set_level("DEBUG")
    for method, path in every_route(guarded):
        answer = guarded.request(method, path, headers=bearer(token))
        assert token not in answer.text + str(answer.headers)
    answer = guarded.get("/v1/runs", headers=bearer(token + "x"))
    assert token not in answer.text
    assert token not in caplog.text
    assert token not in repr(guarded.app.state.policy)
    assert token not in "\0".join(os.environ.values())


def test_the_check_reads_nothing_but_the_raw_scope() -> None:
    """A root_path or a forwarded header must not talk it into another host or path."""
    policy = access.Policy(frozenset({"127.0.0.1"}))
    scope = {
        "type": "http", "method": "POST", "path": "/v1/runs", "raw_path": b"/v1/runs",
        "root_path": "/static", "query_string": b"",
        "headers": [(b"host", b"evil.example"), (b"x-forwarded-host", b"127.0.0.1")],
    }  # fmt: skip
    with pytest.raises(access.Forbidden):
        access.check(policy, scope)
