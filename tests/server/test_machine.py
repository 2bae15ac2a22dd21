"""A rule-based machine: everything a user, a crash or a clock may do to runs, in any order.

The server is the real one (Database, the verbs of runs, ingestion, the supervisor's tick); trainers
are objects of this process that keep to the protocol. The laws are held after every step.
"""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import select

from server.database.db import Database
from server.database.tables import Execution, Run
from server.domain import checkpoint_lookup, lineage, runs
from server.domain.states import SETTLED, State
from server.errors import TraindError
from server.machine.devices import Device
from server.settings import Settings
from server.supervision import watch
from server.supervision.context import SupervisorContext
from server.supervision.supervisor import Supervisor
from tests.server.machine_world import Killed, World
from tests.soak import books
from trainer.contract.extend import ExtendRequest

TICK_SECONDS = 0.7
NAMES = ("a", "b")
PLACES = (
    "supervisor.spawn", "supervisor.record", "ingest.rows", "ingest.cursor", "db.commit",
    "ingest.committed", "durable.rename",
)  # fmt: skip


# --- the machine ---------------------------------------------------------------------------------


class Machine(RuleBasedStateMachine):
    """Rules are what may happen; `hold_the_laws` is what must be so after each."""

    def __init__(self) -> None:
        super().__init__()
        memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
        self.folder = tempfile.TemporaryDirectory(prefix="machine-", dir=memory)
        self.world = World()
        self.world.__enter__()
        self.open_files = count_open_files()
        self.there: dict[str, str] = {}  # name -> id of every run whose creation was acknowledged
        self.settings = Settings(data_dir=Path(self.folder.name), pause_deadline_seconds=60)
        self.db = Database.open(self.settings)
        self.supervisor: Supervisor | None = None
        self.start_daemon()

    def start_daemon(self) -> None:
        """A new one; what the dead one held open is closed, as the kernel does."""
        if self.supervisor is not None:
            self.supervisor.stop()
        context = SupervisorContext(
            self.db, self.settings, (Device("cpu", "a processor"),), (0.5, 1.0)
        )
        self.supervisor = Supervisor(context, lambda: self.world.monotonic)

    def run_named(self, name: str) -> Run | None:
        with self.db.read() as session:
            return session.scalar(select(Run).where(Run.name == name))

    def ask(self, name: str, verb: Callable[..., Any], *args: Any, **named: Any) -> bool:
        """Ask for a verb as the API does. Whether it was accepted."""
        try:
            with self.db.write() as session:
                run = session.scalar(select(Run).where(Run.name == name))
                if run is None:
                    return False
                verb(session, run, *args, now=self.world.time(), **named)
        except TraindError:
            return False
        return True

    def desires(self, name: str, wanted: str) -> None:
        """An acknowledged command is in the database: a new reader sees it."""
        run = self.run_named(name)
        assert run is not None
        assert run.desired_state == wanted

    # --- what a user does ------------------------------------------------------------------------

    @initialize()
    def begin(self) -> None:
        """Something trains from the start."""
        self.create_run("a", 40, start=True)
        self.live(3, 4)

    @rule(name=st.sampled_from(NAMES), steps=st.integers(1, 40), start=st.booleans())
    def create(self, name: str, steps: int, start: bool) -> None:
        self.create_run(name, steps, start)

    def create_run(self, name: str, steps: int, start: bool) -> None:
        body = {"name": name, "horizon": {"steps": steps}, "start": start}
        body["recovery"] = {"max_attempts_without_progress": 5}
        try:
            with self.db.write() as session:
                run_id = runs.create(session, body, now=self.world.time()).id
                data = self.settings.paths.run(run_id).data
                data.parent.mkdir(parents=True)
                data.write_text("{}")
        except TraindError:
            return
        self.there[name] = run_id
        self.desires(name, "running" if start else "created")

    @rule(name=st.sampled_from(NAMES))
    def start(self, name: str) -> None:
        self.ask(name, runs.start)

    @rule(name=st.sampled_from(NAMES))
    def pause(self, name: str) -> None:
        if self.ask(name, runs.request_pause):
            self.desires(name, "paused")

    @rule(name=st.sampled_from(NAMES))
    def resume(self, name: str) -> None:
        if self.ask(name, runs.resume):
            self.desires(name, "running")

    @rule(name=st.sampled_from(NAMES))
    def cancel(self, name: str) -> None:
        if self.ask(name, runs.request_cancel):
            self.desires(name, "cancelled")

    @rule(
        name=st.sampled_from(NAMES),
        steps=st.integers(1, 30),
        at=st.sampled_from(("end", "now")),
        start=st.sampled_from((None, True, False)),
    )
    def extend(self, name: str, steps: int, at: str, start: bool | None) -> None:
        ask = ExtendRequest.model_validate({"add_steps": steps, "at": at, "start": start})
        before = self.run_named(name)
        if self.ask(name, runs.extend, ask) and before is not None:
            after = self.run_named(name)
            assert after is not None
            assert after.end_step > before.end_step or after.pending_extend or at == "now"

    @rule(name=st.sampled_from(NAMES), which=st.integers(0, 5), steps=st.integers(1, 30))
    def extend_from_a_checkpoint(self, name: str, which: int, steps: int) -> None:
        run = self.run_named(name)
        if run is None:
            return
        with self.db.read() as session:
            names = [c.name for c in checkpoint_lookup.usable(session, run.id)]
        if names:
            chosen = names[which % len(names)]
            asked = {"to_step": int(chosen[5:14]) + steps, "from_checkpoint": chosen}
            self.ask(name, runs.extend, ExtendRequest.model_validate(asked))

    @rule(name=st.sampled_from(NAMES))
    def delete(self, name: str) -> None:
        run = self.run_named(name)
        if run is not None and self.ask(name, runs.delete):
            assert self.run_named(name) is None
            del self.there[name]
            shutil.rmtree(self.settings.paths.run(run.id).root)

    # --- what the world does ---------------------------------------------------------------------

    @rule(ticks=st.integers(1, 4))
    def tick(self, ticks: int) -> None:
        for _ in range(ticks):
            self.world.monotonic += TICK_SECONDS
            assert self.supervisor is not None
            try:
                self.supervisor.tick()
            except Killed:
                self.start_daemon()

    @rule(rounds=st.integers(1, 5), steps=st.integers(1, 13))
    def live(self, rounds: int, steps: int) -> None:
        """Time passes: the daemon looks and trainers work."""
        for _ in range(rounds):
            self.tick(1)
            for trainer in self.world.living():
                trainer.work(steps)

    @precondition(lambda self: self.world.living())
    @rule(steps=st.integers(0, 25))
    def train(self, steps: int) -> None:
        for trainer in self.world.living():
            trainer.work(steps)

    @precondition(lambda self: self.world.living())
    @rule(how=st.sampled_from(("die", "tear", "unsaid", "fail")))
    def kill_a_trainer(self, how: str) -> None:
        (trainer,) = self.world.living()
        if how == "tear":
            trainer.tear()
        elif how == "fail":
            trainer.step = max(trainer.step, 0)
            trainer.end("failed", "crashed", saves=False)
        else:
            if how == "unsaid" and trainer.step > 0:
                trainer.save("cadence", told=False)
            trainer.die()

    @rule()
    def kill_the_daemon(self) -> None:
        self.start_daemon()

    @rule(place=st.sampled_from(PLACES))
    def kill_the_daemon_at(self, place: str) -> None:
        self.world.deadly = place
        self.tick(2)
        self.world.deadly = None

    @rule()
    def reopen_the_database(self) -> None:
        self.db.close()
        self.db = Database.open(self.settings)
        self.start_daemon()

    @rule(seconds=st.sampled_from((-86_400.0, -3_600.0, -1.0, 3_600.0, 86_400.0)))
    def set_the_clock(self, seconds: float) -> None:
        self.world.wall += seconds

    # --- what must hold --------------------------------------------------------------------------

    @invariant()
    def hold_the_laws(self) -> None:
        with self.db.read() as session:
            found = session.scalars(select(Run)).all()
            assert {run.name: run.id for run in found} == self.there  # what was acknowledged
            whole = session.connection().exec_driver_sql("PRAGMA integrity_check").scalar_one()
            assert whole == "ok"
            for run in found:
                paths = self.settings.paths
                assert list(books._of_attempts(session, run, paths)) == []
                assert books.illegal_moves(session, run) == []
                assert len(self.world.living(run.id)) <= 1
                self.hold_the_lineage(session, run)
                if run.state in (State.created, State.paused, State.completed):
                    assert self.world.living(run.id) == []

    def hold_the_lineage(self, session: Any, run: Run) -> None:
        joined = [(s.low, s.high) for s in lineage.stretches(session, run.id)]
        for (_, high), (low, _) in itertools.pairwise(joined):
            assert high == low, joined
        if joined:
            assert joined[0][0] == 0
        listed = checkpoint_lookup.usable(session, run.id)
        if listed:
            newest = max(listed, key=lambda c: (c.step, c.name))
            directory = self.settings.paths.run(run.id).checkpoints / newest.name
            assert (directory / "manifest.json").exists()

    def teardown(self) -> None:
        """Left alone, every run comes to an end of its own; then nothing is left."""
        try:
            for _ in range(400):
                self.tick(1)
                for trainer in self.world.living():
                    trainer.work(50)
                if not self.world.living() and self.all_settled():
                    break
            assert self.all_settled(), self.picture()
            self.hold_the_laws()
            self.everything_is_drained()
            assert self.db.integrity_check() == []
            assert not list(Path(self.folder.name).rglob("*.tmp"))
        finally:
            if self.supervisor is not None:
                self.supervisor.stop()
            self.db.close()
            self.world.__exit__()
            self.folder.cleanup()
        assert count_open_files() <= self.open_files

    def all_settled(self) -> bool:
        with self.db.read() as session:
            return all(state in SETTLED for state in session.scalars(select(Run.state)))

    def everything_is_drained(self) -> None:
        with self.db.read() as session:
            assert set(session.scalars(select(Execution.state))) <= {"ended"}
            for run in session.scalars(select(Run)):
                if run.state == State.completed:
                    assert run.step == run.end_step

    def picture(self) -> str:
        with self.db.read() as session:
            found = session.scalars(select(Run)).all()
        return str([(r.name, r.state, r.reason, r.desired_state, r.step) for r in found])


def count_open_files() -> int:
    """Descriptors of this process; 0 where the system does not tell."""
    return len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").is_dir() else 0


EXAMPLES = int(os.environ.get("TRAIND_MACHINE_EXAMPLES", "15"))


def drive(examples: int, phases: tuple[Phase, ...] = (Phase.generate, Phase.shrink)) -> None:
    """Let the machine run. Raises what broke a law."""
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=40,
            deadline=None,
            database=None,
            derandomize="TRAIND_MACHINE_EXAMPLES" not in os.environ,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
            phases=phases,
            report_multiple_bugs=False,
        ),
    )


@pytest.mark.timeout(600)
def test_f42_the_laws_hold_whatever_happens() -> None:
    drive(EXAMPLES)


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("where", "name", "instead"),
    [
        (lineage, "supersede", lambda *_: 0),
        (watch.Watch, "presence", lambda *_: watch.Presence.gone),
    ],
    ids=["the lineage is not cut", "the living are called dead"],
)
def test_control_a_broken_server_breaks_a_law(where: Any, name: str, instead: Any) -> None:
    """Each of these is noticed, so the machine does come to the places that matter."""
    with patch.object(where, name, instead), pytest.raises(AssertionError):
        drive(200, (Phase.generate,))
