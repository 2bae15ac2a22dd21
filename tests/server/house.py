"""A daemon's inside without HTTP, for tests: real database, real supervisor, real processes."""

from __future__ import annotations

import itertools
import json
import os
import shlex
import stat
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import select

from server.database.db import Database
from server.database.tables import Attempt, Event, Execution, Job, Run
from server.domain import runs
from server.launch import process
from server.machine.devices import Device
from server.settings import Settings
from server.supervision.context import SupervisorContext
from server.supervision.supervisor import Supervisor

FAKE = Path(__file__).with_name("fake_trainer.py")
ROOT = FAKE.parents[2]
CPU = (Device("cpu", "a processor"),)
BACKOFF = (0.05, 0.1, 0.2)
T = TypeVar("T")


def launcher(directory: Path) -> str:
    """An interpreter that runs the fake trainer whatever module it is asked for."""
    path = directory / "fake-python"
    paths = f"PYTHONPATH={shlex.quote(str(ROOT))}"
    python, fake = shlex.quote(sys.executable), shlex.quote(str(FAKE))
    path.write_text(f'#!/bin/sh\n{paths} exec {python} {fake} "$3" "$4"\n')
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


class House:
    """One data directory; `daemon()` comes and goes as a daemon would, in this process."""

    def __init__(self, directory: Path, **settings: Any) -> None:
        self.settings = Settings(
            data_dir=directory / "data",
            trainer_python=launcher(directory),
            tick_seconds=0.03,
            **{"pause_deadline_seconds": 5.0, "stall_seconds": 30.0, **settings},
        )
        self.db = Database.open(self.settings)
        self.supervisor: Supervisor | None = None
        self.failures: list[BaseException] = []

    def behave(self, monkeypatch: Any, **manners: dict[str, Any]) -> None:
        """How the fake trainer behaves: `all` for every attempt, `a2` for attempt 2, `job`."""
        keys = {"all": "*", "job": "job"}
        told = {keys.get(key, key.removeprefix("a")): value for key, value in manners.items()}
        monkeypatch.setenv("FAKE", json.dumps(told))

    @contextmanager
    def daemon(self, **context: Any) -> Iterator[Supervisor]:
        self.supervisor = Supervisor(
            SupervisorContext(self.db, self.settings, CPU, **{"backoff": BACKOFF, **context})
        )
        self.supervisor.start(self.failures.append)
        try:
            yield self.supervisor
        finally:
            self.supervisor.stop(stop_trainers=self.settings.stop_trainers)
        assert not self.failures

    # --- asking ----------------------------------------------------------------------------------

    def create(
        self, name: str = "demo", steps: int = 60, *, prepared: bool = True, **body: Any
    ) -> str:
        with self.db.write() as session:
            ask = {"name": name, "horizon": {"steps": steps}, **body}
            run_id = runs.create(session, ask, now=time.time()).id
            if prepared:
                data = self.settings.paths.run(run_id).data
                data.parent.mkdir(parents=True)
                data.write_text("{}")
        return run_id

    def ask(self, verb: Callable[..., Any], run_id: str, *arguments: Any, **named: Any) -> Any:
        with self.db.write() as session:
            return verb(session, session.get_one(Run, run_id), *arguments, now=time.time(), **named)

    def run(self, run_id: str) -> Run:
        with self.db.read() as session:
            return session.get_one(Run, run_id)

    def attempts(self, run_id: str) -> list[Attempt]:
        asked = select(Attempt).where(Attempt.run_id == run_id).order_by(Attempt.number)
        with self.db.read() as session:
            return list(session.scalars(asked))

    def jobs(self) -> list[Job]:
        with self.db.read() as session:
            return list(session.scalars(select(Job).join(Execution).order_by(Execution.created_at)))

    def events(self, run_id: str, kind: str | None = None) -> list[Event]:
        asked = select(Event).where(Event.run_id == run_id).order_by(Event.id)
        with self.db.read() as session:
            return [e for e in session.scalars(asked) if kind in (None, e.kind)]

    def states(self, run_id: str) -> list[str]:
        """Every state the run went through."""
        return [e.data["after"] for e in self.events(run_id, "state")]

    def pid(self, run_id: str) -> int:
        """The pid of the newest attempt once it steps."""
        last = self.until(lambda: self.last(run_id, lambda a: a.pid and a.last_step is not None))
        return int(last.pid or 0)

    def last(self, run_id: str, holds: Callable[[Attempt], Any] = bool) -> Attempt | None:
        found = self.attempts(run_id)
        return found[-1] if found and holds(found[-1]) else None

    # --- waiting ---------------------------------------------------------------------------------

    def until(self, holds: Callable[[], T | None], seconds: float = 60.0) -> T:
        """What `holds` returns once it is true."""
        end = time.monotonic() + seconds
        while True:
            found = holds()
            if found:
                return found
            assert time.monotonic() < end, f"not within {seconds} s: {self.picture()}"
            assert not self.failures, self.failures
            time.sleep(0.01)

    def becomes(self, run_id: str, state: str, seconds: float = 60.0) -> Run:
        return self.until(lambda: r if (r := self.run(run_id)).state == state else None, seconds)

    def reaches(self, run_id: str, step: int) -> None:
        self.until(lambda: self.run(run_id).step >= step)

    def picture(self) -> str:
        with self.db.read() as session:
            events = session.scalars(select(Event).order_by(Event.id)).all()
            runs_now = session.scalars(select(Run)).all()
        states = [(r.name, r.state, r.reason, r.reason_message, r.step) for r in runs_now]
        return "\n".join([str(states), *(f"{e.kind}: {e.message}" for e in events)])

    # --- the end ---------------------------------------------------------------------------------

    def living(self) -> list[int]:
        """Pids of everything that was started here and lives."""
        with self.db.read() as session:
            tokens = list(session.scalars(select(Execution.token)))
        return [i.pid for token in tokens for i in process.carriers(token)]

    def close(self) -> None:
        with self.db.read() as session:
            tokens = list(session.scalars(select(Execution.token)))
        for token in tokens:
            process.kill_carriers(token)
        self._reap()
        self.db.close()

    def _reap(self) -> None:
        """What the daemon of this test left alive is a child of the test's process."""
        for attempt in [a for r in self._run_ids() for a in self.attempts(r)]:
            try:
                os.waitpid(attempt.pid or -1, 0) if attempt.pid else None
            except ChildProcessError:
                continue

    def _run_ids(self) -> list[str]:
        with self.db.read() as session:
            return list(session.scalars(select(Run.id)))

    def check(self, run_id: str) -> None:
        """Laws that hold after every story: gap-free steps in the lineage, attempts closed."""
        from server.domain import lineage

        with self.db.read() as session:
            stretches = lineage.stretches(session, run_id)
        joined = [(s.low, s.high) for s in stretches]
        assert all(a[1] == b[0] for a, b in itertools.pairwise(joined)), joined
        if joined:
            assert joined[0][0] == 0
            assert joined[-1][1] == self.run(run_id).step
