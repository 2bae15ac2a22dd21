"""A program: the daemon with one more metric in its registry, and what each surface shows of it.

The registry is what every other module is built from, so the entry stands in its source before
anything imports it. Prints a JSON object: surface -> what it shows.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

ENTRY = """
    Metric(
        "update_norm", "Update norm", "rms", "L2 norm of the update.", digits=2,
        gauge="update_norm", short="update", is_reported=True,
    ),
"""
STEPS = 40
LAST = 7.125  # shown with two decimals


def with_one_more() -> None:
    """Put the registry with ENTRY at its end in the place of the module."""
    name = "trainer.contract.metrics"
    found = importlib.util.find_spec(name)
    assert found is not None
    assert found.origin is not None
    source = Path(found.origin).read_text()
    end = source.index("\n)\n", source.index("METRICS: tuple"))
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module
    exec(compile(source[:end] + ENTRY + source[end:], found.origin, "exec"), module.__dict__)


def show(root: Path) -> dict[str, Any]:
    from docs import generate
    from server.metrics import rollups
    from tests.server import reporting
    from tests.server.asgi import Asgi
    from tests.server.live_server import serving

    asgi = Asgi(root)
    run_id = reporting.create(asgi.db)
    attempt = reporting.attempt(asgi.db, asgi.settings, run_id)
    attempt.begin()
    for number in range(STEPS):
        value = LAST if number == STEPS - 1 else number / 10
        attempt.steps(number, number + 1, more={"update_norm": value})
    attempt.ingest()
    asgi.move("demo", "running")
    curve = asgi.get("/v1/runs/demo/metrics?keys=update_norm").json()
    binned = asgi.get("/v1/runs/demo/metrics?keys=update_norm&max_points=2").json()
    shown: dict[str, Any] = {
        "stored": "update_norm" in rollups.KEYS and "update_norm" not in rollups.COLUMNS,
        "curve": [p[2] for p in curve["series"][0]["points"]],
        "highest of the bins": max(p[4] for p in binned["series"][0]["points"]),
        "csv": asgi.get("/v1/runs/demo/metrics?wide=true", headers={"Accept": "text/csv"}).text,
        "progress": asgi.get("/v1/runs/demo/progress").json()["more"],
        "run": asgi.get("/v1/runs/demo").json()["metrics"],
        "catalog": asgi.get("/v1/catalog").json()["metrics"][-1],
        "prometheus": asgi.get("/metrics").text,
        "report": asgi.get("/v1/runs/demo/report", headers={"Accept": "text/markdown"}).text,
        "docs": "\n".join(generate.metrics_page()),
    }
    with serving(asgi) as served:
        os.environ["TRAIND_URL"] = f"http://127.0.0.1:{served.port}"
        for words in (("show", "demo"), ("metrics", "demo")):
            shown[f"traind {words[0]}"] = run_command(*words)
        shown["traind watch"] = watched(served.port)
    asgi.close()
    return shown


def run_command(*words: str) -> str:
    """What a command prints."""
    from server.cli.app import main

    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        main(list(words))
    return said.getvalue()


def watched(port: int) -> str:
    """The screen of `traind watch`."""
    from rich.console import Console

    from server.cli.view import View, screen
    from server.client import Client

    console = Console(width=160, height=40, record=True, file=io.StringIO())
    client = Client(f"http://127.0.0.1:{port}")
    console.print(screen(View(client.progress("demo")), 160, 40))
    client.close()
    return console.export_text()


if __name__ == "__main__":
    with_one_more()
    with tempfile.TemporaryDirectory() as directory:
        os.environ |= {"NO_COLOR": "1", "TRAIND_DATA_DIR": directory, "COLUMNS": "160"}
        print(json.dumps(show(Path(directory) / "data")))
