"""A browser, a real daemon whose trainer needs no torch, and the stub with its long history."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from tests.e2e.real_daemon import RealDaemon
from tests.e2e.stub_runs import StubRun
from tests.e2e.web_stub import create_stub
from tests.server.house import launcher
from tests.serving import Serving

HERE = Path(__file__).parent
CHROMIUM = "/usr/bin/chromium"
DEADLINE_MILLISECONDS = 30_000
ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--host-resolver-rules=MAP box.lan 127.0.0.1",
]  # fmt: skip
# How Chromium reports a request that a daemon which is not there could not answer.
CONNECTION_LOST = re.compile(
    r"Failed to load resource: net::ERR_(CONNECTION_(REFUSED|RESET|CLOSED|ABORTED)|EMPTY_RESPONSE"
    r"|INCOMPLETE_CHUNKED_ENCODING|SOCKET_NOT_CONNECTED)( 200 \(OK\))?"
)
OpenPage = Callable[..., Any]
WHEN = r"(\d{4}-\d\d-\d\d )?\d\d:\d\d"  # a time of today, or of the day before or after


@pytest.fixture(autouse=True)
def second_try(request: pytest.FixtureRequest) -> None:
    """A daemon that a module shares holds nothing of the first try."""
    if getattr(request.node, "execution_count", 1) > 1 and "daemon" in request.fixturenames:
        shared = request.getfixturevalue("daemon")
        if isinstance(shared, RealDaemon):
            shared.clear()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Closed with its module: playwright keeps an event loop running in this thread."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Any) -> Iterator[OpenPage]:
    """open_page(url, width=…, …): a page of its own. Anything on the console fails the test."""
    contexts, pages = [], []

    def open_one(url: str, *, width: int = 1280, height: int = 900, **context: Any) -> Any:
        made = browser.new_context(viewport={"width": width, "height": height}, **context)
        contexts.append(made)
        page = made.new_page()
        pages.append(page)
        page.set_default_timeout(DEADLINE_MILLISECONDS)
        page.said = said = []
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on(
            "console", lambda m: said.append(m.text) if m.type in ("error", "warning") else None
        )
        page.goto(url)
        return page

    yield open_one
    for context in contexts:
        context.close()
    assert [text for page in pages for text in page.said] == []


def settled(page: Any) -> None:
    """The page has its heading, and no part of it still waits for its first answer."""
    page.get_by_role("heading", level=1).first.wait_for()
    page.wait_for_function("() => !document.querySelector('[aria-busy=true]')")


def until(page: Any, condition: str) -> None:
    """Wait for a JavaScript expression to be true."""
    page.wait_for_function(f"() => {condition}")


@pytest.fixture(scope="session")
def stub_url() -> Iterator[str]:
    yield from _served(create_stub(100))


@pytest.fixture(scope="module")
def uneven_url() -> Iterator[str]:
    """A stub with runs of 5,878, 900 and 229 steps: the shorter, the higher its loss."""
    lengths = {"long": 5878, "middle": 900, "short": 229}
    runs = [
        StubRun.of(i, name, "completed", "finished", steps)
        for i, (name, steps) in enumerate(lengths.items())
    ]
    yield from _served(create_stub(runs=runs))


@pytest.fixture
def guarded_url() -> Iterator[str]:
    """A stub that wants the token "sesame"."""
    yield from _served(create_stub(3, token="sesame"))


def _served(app: Any) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        thread.join(10)


class Daemon(Serving):
    """`traind serve` as a process, with a trainer that takes `step_seconds` for each step and has
    `manners` (tests/server/fake_trainer.py)."""

    def __init__(
        self,
        directory: Path,
        step_seconds: float,
        auth: str = "auto",
        manners: dict[str, Any] | None = None,
        **environment: str,
    ) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]  # kept over a restart, for the page that is open
        super().__init__(
            directory,
            TRAIND_PORT=str(self.port),
            TRAIND_TRAINER_PYTHON=launcher(directory),
            TRAIND_TICK_SECONDS="0.05",
            TRAIND_STOP_TRAINERS="false",
            TRAIND_AUTH=auth,
            FAKE=json.dumps({"*": {"step_seconds": step_seconds, **(manners or {})}}),
            **environment,
        )
        self.token_file = self.data_dir / "token"
        self.start()

    def start(self) -> None:
        self.launch()
        self.wait_ready()

    def post(self, path: str, body: Any = None) -> Any:
        answer = self._ask("POST", path, json=body)
        assert answer.is_success, answer.text
        return answer.json()

    def run(self, name: str) -> Any:
        return self._ask("GET", f"/runs/{name}").json()

    def wait(self, name: str, condition: Callable[[Any], bool], seconds: float = 30) -> Any:
        deadline = time.monotonic() + seconds
        while not condition(run := self.run(name)):
            assert time.monotonic() < deadline, f"{run['state']} at step {run['step']}"
            time.sleep(0.1)
        return run

    def end(self) -> None:
        """Cancel what still trains, so that no process outlives the test, then stop."""
        for run in self._ask("GET", "/runs").json()["data"]:
            if run["state"] not in ("created", "paused", "completed", "failed", "cancelled"):
                self.post(f"/runs/{run['id']}/cancel")
                self.wait(run["id"], lambda r: r["state"] not in ("cancelling", "running"))
        self.process.terminate()
        self.process.wait(20)

    def _ask(self, method: str, path: str, **given: Any) -> httpx.Response:
        known = self.token_file.exists()
        token = {"Authorization": f"Bearer {self.token_file.read_text().strip()}"} if known else {}
        return httpx.request(method, f"{self.url}/v1{path}", headers=token, timeout=10, **given)


@contextmanager
def away(daemon: Daemon, *pages: Any) -> Iterator[None]:
    """The daemon is killed, and back at the end. That requests fail in between is excused on the
    console of these pages; anything else, and anything before or afterwards, is not."""
    with ExitStack() as excused:
        for page in pages:
            excused.enter_context(_lost_connections_excused(page))
        daemon.kill()
        yield
        daemon.start()


@contextmanager
def unanswered(page: Any) -> Iterator[None]:
    """Requests to the API fail as if nobody were there; streams that are open continue."""

    with _lost_connections_excused(page), refused(page, "**/v1/**", "connectionrefused"):
        yield


@contextmanager
def refused(page: Any, pattern: str, reason: str) -> Iterator[None]:
    """Requests that match get no answer. The route stays and lets through afterwards: taken away
    while a request is held by it, it leaves a context that never closes."""
    refusing = True
    page.route(pattern, lambda r: r.abort(reason) if refusing else r.fallback())
    yield
    refusing = False


@contextmanager
def _lost_connections_excused(page: Any) -> Iterator[None]:
    page.evaluate("0")  # a round trip: what was said so far has arrived
    before = len(page.said)
    yield
    page.evaluate("fetch('healthz').then((answer) => answer.text())")
    page.said[before:] = [t for t in page.said[before:] if not CONNECTION_LOST.fullmatch(t)]


@pytest.fixture
def make_daemon(tmp_path: Path) -> Iterator[Callable[..., Daemon]]:
    """make_daemon(hold_at=7, …): the daemon of a test, with a trainer of these manners."""
    made: list[Daemon] = []

    def make(**manners: Any) -> Daemon:
        made.append(Daemon(tmp_path, step_seconds=0.05, manners=manners))
        return made[-1]

    yield make
    for daemon in made:
        daemon.end()


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    daemon = Daemon(tmp_path, step_seconds=0.1)
    yield daemon
    daemon.end()
