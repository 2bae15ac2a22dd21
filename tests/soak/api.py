"""API: eight threads request everything at once on a few runs."""

from __future__ import annotations

import os
import random
import re
import subprocess
import tempfile
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

import httpx
from sqlalchemy import select

from server.database.db import Database
from server.database.tables import Event, Run
from server.domain import runs, states
from server.domain.states import State
from server.launch import process
from server.settings import Settings
from tests.e2e.real_daemon import RealDaemon
from tests.server.house import House, launcher
from tests.soak import books
from tests.soak.counts import Budget, Counts
from trainer.contract.reasons import Reason

THREADS = 8
NAMES = ("a", "b", "c")
FINE = {200, 201, 202, 204, 404, 409, 422, 503}
VERBS = ("create", "pause", "resume", "extend", "extend now", "cancel", "delete", "show", "events")
OF_A_RUN = re.compile(rb"/runs/(run_\w+)/attempts/")


def run(budget: float, seed: int) -> Counts:
    counts = Counts("api", seed)
    with tempfile.TemporaryDirectory(prefix="soak-api-") as folder:
        manners = '{"*": {"step_seconds": 0.003, "save_every": 25}}'
        python = launcher(Path(folder))
        daemon = RealDaemon(Path(folder), TRAIND_TRAINER_PYTHON=python, FAKE=manners)
        _storm(daemon, counts, budget, seed)
        daemon.end()
        nothing_lives(daemon.data_dir, counts)
        _look_at_history(daemon.data_dir, counts)
    return counts


def control(seed: int) -> Counts:
    """A history without one of its moves, and a run with two trainers: both must be detected."""
    counts = Counts("api", seed)
    with tempfile.TemporaryDirectory(prefix="soak-api-") as folder:
        db = Database.open(Settings(data_dir=Path(folder)))
        try:
            with db.write() as session:
                row = runs.create(session, {"name": "a", "horizon": {"steps": 10}}, now=1.0)
                for state in (State.starting, State.running, State.completed):
                    states.move(session, row, state, Reason.requested)
            with db.write() as session:
                session.delete(_second_move(session))
            _look_at_history(Path(folder), counts, db)
        finally:
            db.close()
    watch = Watcher(counts)
    twice = ["sh", "-c", "read x", "/runs/run_x/attempts/"]
    two = [subprocess.Popen(twice, stdin=subprocess.PIPE) for _ in range(2)]
    time.sleep(0.2)  # until both show their command lines
    watch.look()
    for child in two:
        child.communicate()
    return counts


def control_unguarded(seed: int) -> Counts:
    """A DELETE that removes the rows of a run that is training, and orphans its trainer."""
    counts = Counts("api", seed)
    with tempfile.TemporaryDirectory(prefix="soak-api-") as folder:
        house = House(Path(folder))
        run_id = house.create(steps=100_000)
        try:
            with house.daemon(), patch.object(states, "require", lambda *_: None):
                pid, token = house.pid(run_id), house.attempts(run_id)[0].token
                house.ask(runs.delete, run_id)
            nothing_lives(house.settings.data_dir, counts)
            process.kill_carriers(token)
            os.waitpid(pid, 0)
        finally:
            house.close()
    return counts


def _second_move(session: Any) -> Event:
    moves = select(Event).where(Event.kind == "state").order_by(Event.id)
    return session.scalars(moves).all()[1]


# --- threads -------------------------------------------------------------------------------------


def _storm(daemon: RealDaemon, counts: Counts, seconds: float, seed: int) -> None:
    left, said, lock = Budget(seconds), Counter(), threading.Lock()

    def ask(number: int) -> None:
        draw = random.Random(seed * 100 + number)
        with httpx.Client(base_url=daemon.url, timeout=30) as client:
            while not left.is_over:
                verb, name = draw.choice(VERBS), draw.choice(NAMES)
                name = "c" if verb == "delete" else name  # the others keep their history
                try:
                    status = _ask(client, verb, name, draw)
                except httpx.HTTPError as error:
                    status = 0
                    counts.fail(f"{verb} {name}: {error!r}")
                with lock:
                    said[status] += 1
                if status not in FINE:
                    counts.fail(f"{verb} {name}: answered {status}")
                time.sleep(draw.uniform(0, 0.05))

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(THREADS)]
    watch = Watcher(counts)
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        watch.look()
        time.sleep(0.05)
    counts.add("calls", said.total())
    counts.add("answers 5xx but 503", sum(n for s, n in said.items() if s >= 500 and s != 503))
    counts.add("answers 503", said[503])
    counts.say(f"answers {dict(sorted(said.items()))}")
    counts.expect(daemon.process.poll() is None, "the daemon died")


def _ask(client: httpx.Client, verb: str, name: str, draw: random.Random) -> int:
    path = f"/v1/runs/{name}"
    steps = draw.randrange(20, 400)
    match verb:
        case "create":
            body = {"name": name, "horizon": {"steps": steps}}
            answer = client.post("/v1/runs", json=body)
        case "delete":
            answer = client.delete(path)
        case "show":
            answer = client.get(path)
        case "events":
            answer = client.get(f"{path}/events")
        case "extend" | "extend now":
            body = {"add_steps": steps, "at": "now" if verb == "extend now" else "end"}
            answer = client.post(f"{path}/extend", json=body)
        case _:
            answer = client.post(f"{path}/{verb}")
    return answer.status_code


class Watcher:
    """Watches the process table: at most one trainer of a run may be alive."""

    def __init__(self, counts: Counts) -> None:
        self._counts = counts

    def look(self) -> None:
        alive: dict[bytes, set[bytes]] = {}
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                line = path.read_bytes()
            except OSError:
                continue
            if found := OF_A_RUN.search(line):
                alive.setdefault(found[1], set()).add(path.parent.name.encode())
        self._counts.add("looks at the process table")
        for run_id, pids in alive.items():
            if len(pids) > 1:
                self._counts.fail(f"{run_id.decode()} has {len(pids)} trainers")


def nothing_lives(data_dir: Path, counts: Counts) -> None:
    """Check that no process of a run is left when every run has ended and the daemon has exited."""
    place = str(data_dir / "runs").encode()
    left = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if place in path.read_bytes():
                left.append(path.parent.name)
    counts.expect(not left, f"trainers left alive: {left}")


def _look_at_history(data_dir: Path, counts: Counts, opened: Database | None = None) -> None:
    """Check that moves are legal and begin where the previous one ended; rows match journals."""
    settings = Settings(data_dir=data_dir)
    db = opened or Database.open(settings)
    try:
        for words in books.differences(db, settings.paths):
            counts.fail(words)
        with db.read() as session:
            moves = session.scalars(select(Event.id).where(Event.kind == "state")).all()
            counts.add("moves checked", len(moves))
            counts.add("runs left", len(session.scalars(select(Run.id)).all()))
    finally:
        if opened is None:
            db.close()
