"""The app on a real socket, with resources of every kind: prints its address and its resources,
keeps them in place, and at the end of its input prints the counts of its answers. DIRECTORY.

There is no supervisor: this tests requests, and no request may start a process.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

from sqlalchemy import select, update

from server.database.tables import Execution, Run
from server.domain import executions
from server.domain.states import State
from server.queries import run_views
from tests.server import reporting
from tests.server.asgi import Asgi
from tests.server.live_server import serving
from trainer.contract.reasons import Reason

CHECK_SECONDS = 0.5
STEP = 20
STATES = ("created", "queued", "running", "pausing", "paused", "completed", "failed", "cancelled")


def main(directory: Path) -> None:
    asgi = Asgi(directory)
    counter = _Counting(asgi.app)
    asgi.app = counter  # type: ignore[assignment]
    there = {"run": list(STATES), "checkpoint": [], "job": [], "name": ["manifest.json", "x"]}
    for name in STATES:
        there["checkpoint"].append(_plant(asgi, name))
    sample = {"prompts": ["a"], "where": "cpu"}
    for _ in range(4):
        answer = asgi.post("/v1/runs/completed/samples", sample)
        assert answer.status_code == 202, answer.text
        there["job"].append(answer.json()["id"])
    assert asgi.get("/openapi.json").status_code == 200  # made once, then kept
    ended = threading.Event()
    keeper = threading.Thread(target=_keep, args=(asgi, ended))
    counter.answers.clear()
    with serving(asgi) as served:
        keeper.start()
        print(json.dumps({"port": served.port, "there": there}), flush=True)
        sys.stdin.read()
        ended.set()
        keeper.join()
    print(json.dumps(counter.answers), flush=True)
    asgi.close()


class _Counting:
    """Counts the answers by status in the server, where no client library can hide one."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self.answers: Counter[int] = Counter()
        self.state = app.state

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def counted(message: Any) -> None:
            if message["type"] == "http.response.start":
                self.answers[message["status"]] += 1
            await send(message)

        await self._app(scope, receive, counted)


def _keep(asgi: Asgi, ended: threading.Event) -> None:
    """Restore deleted and moved resources, so that requests meet every state again. Ends jobs, so
    that no request follows one for ever."""
    while not ended.wait(CHECK_SECONDS):
        with asgi.db.write() as session:
            over = {"state": "ended", "outcome": "completed", "ended_at": time.time()}
            working = (Execution.kind == "job") & executions.IS_OPEN
            session.execute(update(Execution).where(working).values(**over))
            found = session.scalars(select(Run).where(Run.name.in_(STATES))).all()
            for run in found:
                run.state = run.name
            missing = set(STATES) - {run.name for run in found}
        for name in missing:
            _plant(asgi, name)


def _plant(asgi: Asgi, name: str) -> str:
    """A run in the state of its name, with an attempt, points and a checkpoint; its name."""
    run_id = reporting.create(asgi.db, name, 4 * STEP, start=name != "created")
    checkpoint = ""
    if name not in ("created", "queued"):
        reporter = reporting.attempt(asgi.db, asgi.settings, run_id)
        reporter.begin()
        reporter.steps(0, STEP)
        checkpoint = reporter.save(STEP)
        directory = asgi.settings.paths.run(run_id).checkpoints / checkpoint
        directory.mkdir(parents=True)
        (directory / "manifest.json").write_text("{}")
        if name != "running":
            reporter.end(_OUTCOMES.get(name, "paused"), STEP, Reason.requested)
        reporter.ingest()
    with asgi.db.write() as session:
        run = run_views.get_run(session, run_id)
        run.state, run.reason = State(name), Reason.requested
    return checkpoint or f"step-{STEP:09d}-a0001"


_OUTCOMES = {"completed": "completed", "failed": "failed", "cancelled": "cancelled"}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
