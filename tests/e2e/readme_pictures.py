"""Make the README's pictures: `python -m tests.e2e.readme_pictures`, some minutes on two cores.

A real run on the CPU whose trainer is killed, which is paused and resumed, and extended while it
trains; taken while it trains on.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.e2e.conftest import ARGUMENTS, CHROMIUM
from tests.e2e.real_daemon import RealDaemon

DOCS = Path(__file__).parents[2] / "docs"
NAME = "stdlib-d4"
MAX_BYTES = 300_000  # a README is read on a phone too
SPEC: dict[str, Any] = {
    "name": NAME,
    "title": "Python's standard library, 4 layers",
    "preset": "demo",
    "model": {"depth": 4, "aspect_ratio": 24, "head_dim": 32, "sequence_len": 128},
    "batch": {"tokens": 2048, "device_batch_size": 16},
    "horizon": {"steps": 450},
    "evaluate": {
        "bpb_every": 30, "eval_tokens": 32_768, "sample_every": 150,
        "prompts": ["def ", "import "],
    },
    "checkpoint": {"every_steps": 50},
}  # fmt: skip
SHOTS: dict[str, dict[str, Any]] = {
    "run.png": {"viewport": {"width": 1440, "height": 1180}, "color_scheme": "light"},
    "phone.png": {
        "viewport": {"width": 390, "height": 844}, "device_scale_factor": 2, "has_touch": True,
        "is_mobile": True, "color_scheme": "dark",
    },
}  # fmt: skip


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        daemon = RealDaemon(Path(folder))
        try:
            live(daemon)
            take(daemon.url, DOCS)
        finally:
            daemon.end()


def live(daemon: RealDaemon) -> None:
    """A crash at 100, a pause at 200, an extend at 300; then on to 500 of 700 steps."""
    daemon.client.create_run(SPEC)
    daemon.until(NAME, lambda now: now.step >= 100, 600)
    os.kill(daemon.trainer_pid(NAME), signal.SIGKILL)
    daemon.until(NAME, lambda now: now.step >= 200, 600)
    daemon.client.pause(NAME)
    daemon.until_state(NAME, "paused")
    daemon.client.resume(NAME)
    daemon.until(NAME, lambda now: now.step >= 300, 600)
    daemon.client.extend(NAME, {"to_step": 700, "at": "now", "schedule": {"mode": "replan"}})
    daemon.until(NAME, lambda now: now.step >= 500, 600)


def take(url: str, folder: Path) -> None:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        for name, context in SHOTS.items():
            page = browser.new_context(**context).new_page()
            page.goto(f"{url}/#/runs/{NAME}")
            page.locator(".chart-status", has_text="steps").wait_for()
            page.locator(".live[data-status=live]").wait_for()
            page.wait_for_timeout(1500)  # the bar has moved to its place
            page.screenshot(path=folder / name)
            size = (folder / name).stat().st_size
            print(f"{name}: {size:,} bytes")
            assert size <= MAX_BYTES, name
        browser.close()


if __name__ == "__main__":
    sys.exit(main())
