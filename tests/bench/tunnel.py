"""The dashboard through a slow tunnel: bytes, requests and time to the first chart of a run page,
and the traffic of an open page of a running run per minute. The browser has an empty cache and
throttles itself; the daemon is the stub, with the daemon's own files, compression and columns."""

from __future__ import annotations

import shutil
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from tests.bench import bars
from tests.e2e.web_stub import create_stub

RUN = "#/runs/rtx4070-d12-200k"  # 143,210 of 200,000 steps, running
BITS_PER_SECOND, LATENCY_MILLISECONDS = 2_000_000, 150
OPEN_SECONDS = 60
SHOWN = "document.querySelector('.chart-status')?.textContent.includes('per point')"


def main() -> None:
    if not (chromium := shutil.which("chromium")):
        print("tunnel: no chromium here")
        return
    from playwright.sync_api import sync_playwright

    with _served() as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_context().new_page()
        seen = _watched(page)
        page.goto(f"{url}/{RUN}", wait_until="commit")
        page.wait_for_function(f"() => {SHOWN}", polling="raf")
        seconds = page.evaluate("performance.now()") / 1000
        page.wait_for_timeout(1_500)
        first = dict(seen)
        bars.at_most("first chart at 2 Mbit/s and 150 ms", seconds, 3.0, "s")
        bars.at_most("first visit of a run page", first["bytes"] / 1e3, 300.0, "kB")
        bars.at_most("requests of the first visit", first["requests"], 15, "requests")
        began, before = time.monotonic(), seen["bytes"]
        page.wait_for_timeout(1_000 * OPEN_SECONDS)
        a_minute = (seen["bytes"] - before) * 60 / (time.monotonic() - began)
        bars.at_most("an open running page", a_minute / 1e6, 0.3, "MB a minute")
        browser.close()


def _watched(page: Any) -> dict[str, int]:
    """Counters of bytes on the wire and of requests."""
    seen = {"bytes": 0, "requests": 0}
    network = page.context.new_cdp_session(page)
    network.send("Network.enable")
    network.send(
        "Network.emulateNetworkConditions",
        {
            "offline": False, "latency": LATENCY_MILLISECONDS,
            "downloadThroughput": BITS_PER_SECOND / 8, "uploadThroughput": BITS_PER_SECOND / 8,
        },
    )  # fmt: skip

    def count(key: str, amount: int) -> None:
        seen[key] += amount

    network.on("Network.dataReceived", lambda event: count("bytes", event["encodedDataLength"]))
    network.on("Network.requestWillBeSent", lambda event: count("requests", 1))
    return seen


@contextmanager
def _served() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(create_stub(100), log_level="error"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        thread.join(10)


if __name__ == "__main__":
    main()
