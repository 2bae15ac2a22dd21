"""The page of the API, in a real browser: everything is there, nothing comes from elsewhere."""

from __future__ import annotations

import shutil

import pytest

from tests.server.asgi import Asgi
from tests.server.live_server import serving


@pytest.mark.needs("browser")
def test_the_docs_page_shows_every_operation_without_a_complaint(asgi: Asgi) -> None:
    from playwright.sync_api import sync_playwright

    paths = asgi.get("/openapi.json").json()["paths"]
    with serving(asgi) as served, sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        page = browser.new_page()
        complaints: list[str] = []
        asked: list[str] = []
        page.on("console", lambda said: complaints.append(said.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(f"http://127.0.0.1:{served.port}/docs")
        page.wait_for_selector("details")
        assert page.locator("details").count() == sum(len(methods) for methods in paths.values())
        told = page.locator("summary .what").all_inner_texts()
        named = {
            one["summary"].replace("`", "") for path in paths.values() for one in path.values()
        }
        assert set(told) == named
        page.get_by_label("Find an endpoint").fill("extend")
        shown = page.locator("details:visible .path").all_text_contents()
        assert "/v1/runs/{run}/extend" in shown
        assert len(shown) < 6
        assert complaints == []
        assert all(url.startswith(f"http://127.0.0.1:{served.port}/") for url in asked)
        browser.close()
