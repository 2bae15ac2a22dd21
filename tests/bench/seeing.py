"""Dashboard and monitoring over a long history: the dashboard in Chromium, the curves, a scrape,
and the memory of many live streams.

`python -m tests.bench.seeing [RUNS [STEPS [DIRECTORY]]]`, as tests.bench.serving.
"""

from __future__ import annotations

import os
import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import httpx

from server.database import tables
from server.database.db import Database
from server.settings import Settings
from tests.bench import asking, bars, history

EVENTS = 5_000
EVENT_BYTES = 300
READERS, STALLED = 100, 100
LOADS = 7


def main() -> None:
    with history.asked_for(__doc__) as folder:
        data_dir = folder / "data"
        db = Database.open(Settings(data_dir=data_dir))
        _tell(db)
        db.close()
        with _daemon(data_dir) as (url, pid):
            _curves(url)
            _scrape(url)
            _dashboard(url)
            _streams(url, pid)


def _tell(db: Database) -> None:
    """Events for the streams to carry."""
    with db.write() as session:
        for i in range(EVENTS):
            said = "m" * EVENT_BYTES
            session.add(tables.Event(kind="notice", message=said, unix_seconds=1.7e9 + i))


@contextmanager
def _daemon(data_dir: Path) -> Iterator[tuple[str, int]]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = os.environ | {"TRAIND_DATA_DIR": str(data_dir), "TRAIND_PORT": str(port)}
    command = [sys.executable, "-m", "server.cli.app", "serve"]
    url = f"http://127.0.0.1:{port}"
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as process:
        try:
            _until_ready(url)
            yield url, process.pid
        finally:
            process.terminate()


def _until_ready(url: str) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            if httpx.get(f"{url}/readyz", timeout=1).is_success:
                return
        except httpx.HTTPError:
            time.sleep(0.1)
    raise RuntimeError("the daemon did not come up")


def _curves(url: str) -> None:
    for name, keys in (("loss", "loss"), ("every key", "")):
        query = f"/v1/runs/run-7/metrics?max_points=1000&keys={keys}"
        answer = _get(url, query).json()
        points = max(len(series["points"]) for series in answer["series"])
        told = f"{points} points of {answer['raw_points']:,} steps, bins of {answer['bin_steps']}"
        p99 = asking.p99(f"curves, {name} ({told})", url, query)
        if name == "loss":
            bars.at_most("metrics at 1,000 points, p99", p99, 50.0, "ms")


def _scrape(url: str) -> None:
    shown = _get(url, "/metrics").text.count("traind_run_info{")
    p99 = asking.p99(f"scrape with {shown} runs", url, "/metrics")
    bars.at_most("scrape with 100 runs, p99", p99, 20.0, "ms")


def _get(url: str, path: str) -> httpx.Response:
    return httpx.get(f"{url}{path}", timeout=30).raise_for_status()


# --- the dashboard -------------------------------------------------------------------------------

READY = {
    "list of runs": ("", "document.querySelectorAll('tbody tr').length >= {runs}"),
    "one run": ("#/runs/run-7", "document.querySelector('.chart-status')?.textContent"),
}


def _dashboard(url: str) -> None:
    """Time from the navigation until every row or chart is shown, with an empty browser cache, and
    once more with a full one."""
    if not (chromium := shutil.which("chromium")):
        print("dashboard: no chromium here")
        return
    from playwright.sync_api import sync_playwright

    runs = min(100, len(_get(url, "/v1/runs?limit=100").json()["data"]))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for name, (place, ready) in READY.items():
            first, again = [], []
            for _ in range(LOADS):
                page = browser.new_context().new_page()
                for took in (first, again):
                    page.goto("about:blank")
                    page.goto(f"{url}/{place}")
                    page.wait_for_function(f"() => {ready.format(runs=runs)}", polling="raf")
                    took.append(page.evaluate("performance.now()"))
                page.context.close()
            print(
                f"dashboard, {name}: first visit median {statistics.median(first):.0f} ms, worst "
                f"{max(first):.0f} ms; again {statistics.median(again):.0f} ms"
            )
            bars.at_most(f"dashboard, {name}, first visit", statistics.median(first), 1000.0, "ms")
        browser.close()


# --- live streams --------------------------------------------------------------------------------


def _streams(url: str, pid: int) -> None:
    """Readers that keep up and others that never read, all of them from the first event on."""
    before = _resident(pid)
    stalled = [_stream(url) for _ in range(STALLED)]
    readers = [_stream(url) for _ in range(READERS)]
    for reader in readers:
        _read_all(reader)
    grown = _resident(pid) - before
    print(
        f"{READERS} streams that read and {STALLED} stalled, {EVENTS:,} events: "
        f"{grown / 1e6:+.1f} MB (from {before / 1e6:.0f} MB)"
    )
    bars.at_most(f"memory of {READERS + STALLED} streams", grown / 1e6, 50.0, "MB")
    for one in (*stalled, *readers):
        with closing(one):
            pass


def _stream(url: str) -> socket.socket:
    host, port = url.removeprefix("http://").split(":")
    sock = socket.create_connection((host, int(port)), timeout=30)
    lines = ["GET /v1/events?after=0 HTTP/1.1", f"Host: {host}:{port}", "Accept: text/event-stream"]
    sock.sendall("\r\n".join([*lines, "", ""]).encode())
    return sock


def _read_all(sock: socket.socket) -> None:
    """Read up to the last event."""
    rest, seen = b"", 0
    while seen < EVENTS:
        part = sock.recv(1 << 20)
        if not part:
            raise RuntimeError("a stream ended early")
        seen += (rest + part).count(b"\nevent: notice\n")
        rest = part[-14:] if not part.endswith(b"\nevent: notice\n") else b""


def _resident(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return 1024 * int(line.split()[1])
    raise RuntimeError("no VmRSS")


if __name__ == "__main__":
    main()
